"""kernel_tuner's strategies on a recorded space, by its own simulation mode."""

from __future__ import annotations

import copy
import json
import random
import warnings
from pathlib import Path
from typing import Any

from lines import serve

MOST_THREADS = 1_000_000_000
"""As its simulated device: what was recorded was possible."""
_space: dict[str, Any] = {}


def load(path: str) -> str:
    """Takes a cache file and says which kernel_tuner will search it."""
    from importlib.metadata import version

    import kernel_tuner.interface
    from constraint import FunctionConstraint
    from kernel_tuner.searchspace import Searchspace

    document = json.loads(Path(path).read_text())
    names = document["tune_params_keys"]
    rows = {tuple(entry[name] for name in names) for entry in document["cache"].values()}
    _space.update(path=path, names=names, rows=rows, values=document["tune_params"])
    _space["kernel"] = document["kernel_name"]
    # It builds its space anew for every search, which takes longer than the search. A space keeps
    # the neighbours that a search has looked up and proposes from these first, so that every search
    # needs one that none has used: sharing it tells the next what the last ones stood at.
    _space["built"] = Searchspace(_space["values"], [FunctionConstraint(_allowed)], MOST_THREADS)
    kernel_tuner.interface.Searchspace = lambda *_, **__: copy.deepcopy(_space["built"])
    return "kernel_tuner " + version("kernel_tuner")


def _allowed(*row: Any) -> bool:
    return row in _space["rows"]


def search(strategy: str, seed: int, evaluations: int) -> list[float | None]:
    """Times in the order in which configurations were first evaluated; None: it failed.

    Its options are its defaults, and only unique configurations count, as it counts itself.
    """
    import numpy as np
    from constraint import FunctionConstraint
    from kernel_tuner import tune_kernel

    random.seed(seed)
    np.random.seed(seed)
    try:
        import torch

        torch.manual_seed(seed)
    except ImportError:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results, _ = tune_kernel(
            _space["kernel"],
            "",
            "",
            [],
            _space["values"],
            restrictions=[FunctionConstraint(_allowed)],
            cache=_space["path"],
            simulation_mode=True,
            strategy=strategy,
            strategy_options={"max_fevals": evaluations},
            objective="time",
            quiet=True,
        )
    found: dict[tuple[Any, ...], float | None] = {}
    for result in results:
        row = tuple(result[name] for name in _space["names"])
        time = result.get("time")
        found.setdefault(row, float(time) if isinstance(time, int | float) else None)
    return list(found.values())[:evaluations]


serve({"load": load, "search": search})
