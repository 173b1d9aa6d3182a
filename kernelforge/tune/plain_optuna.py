"""Optuna as it is used by default, on a recorded space: what our own sampler is compared with.

Each parameter is suggested by itself; what breaks a constraint is pruned, which TPE takes as bad,
and what was tried before is told its time again. Neither counts as an evaluation.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from kernelforge.tune.recorded import RecordedSpace

Suggest = Literal["categorical", "int"]
MOST_ASKS = 12
"""Per evaluation; then the search is taken as ended, with what it has."""


def version() -> str:
    """Which Optuna searches."""
    return f"optuna {optuna.__version__}"


def replay_optuna(
    space: RecordedSpace, suggest: Suggest, evaluations: int, seed: int
) -> NDArray[np.float64]:
    """[evaluations] best time in ms so far of Optuna's TPE, like `replay.replay`.

    Args:
        space: what is searched.
        suggest: by value (`suggest_categorical`), or by place among the sorted values
            (`suggest_int`).
        evaluations: unique valid configurations to try.
        seed: of the sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = list(space.configs[0])
    values = {name: sorted({c[name] for c in space.configs}, key=_order) for name in names}
    index = {tuple(c[name] for name in names): i for i, c in enumerate(space.configs)}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    evaluations = min(evaluations, len(space.configs))
    seen: set[int] = set()
    best: list[float] = []
    for _ in range(MOST_ASKS * evaluations):
        trial = study.ask()
        places = {
            name: trial.suggest_int(name, 0, len(values[name]) - 1)
            if suggest == "int"
            else values[name].index(trial.suggest_categorical(name, values[name]))
            for name in names
        }
        found = index.get(tuple(values[name][places[name]] for name in names))
        time = math.inf if found is None else float(space.times_ms[found])
        if math.isfinite(time):
            study.tell(trial, time)
        else:
            study.tell(trial, state=TrialState.PRUNED)
        if found is None or found in seen:
            continue
        seen.add(found)
        best.append(min(time, best[-1] if best else math.inf))
        if len(best) == evaluations:
            break
    curve = np.full(evaluations, best[-1] if best else math.inf)
    curve[: len(best)] = best
    return curve


def _order(value: object) -> tuple[bool, object]:
    return isinstance(value, str), value
