"""Tuning spaces that were measured once and for all, and how we write them.

With every time known, a search can be replayed in a second and scored against the true optimum.
We write results of the open T4 schema (github.com/odgaard/TuningSchema), and kernel_tuner's cache
for its own searches; `recorded_forms` reads these and more.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import TuneError
from kernelforge.tune.encoded import Encoded
from kernelforge_runtime.written_file import written_whole

SCHEMA_VERSION = "1.0.0"

Config = dict[str, Any]


@dataclass(frozen=True)
class RecordedSpace:
    """Every configuration of a space and how long it took.

    Attributes:
        name: of the file it came from.
        configs: all with the same parameter names.
        runtimes: of each configuration in milliseconds, one value per repetition; empty where it
            failed.
        reasons: why each failed, in the T4 schema's words; "correct" where it did not.
        metadata: where and how it was recorded, in the recorder's words; empty where not told.
    """

    name: str
    configs: tuple[Config, ...]
    runtimes: tuple[tuple[float, ...], ...]
    reasons: tuple[str, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def times_ms(self) -> NDArray[np.float64]:
        """[n] mean of the repetitions, as the literature takes it; inf where it failed."""
        return np.array([math.fsum(t) / len(t) if t else math.inf for t in self.runtimes])

    @property
    def optimum_ms(self) -> float:
        """The best time there is."""
        return float(self.times_ms.min())

    @cached_property
    def encoded(self) -> Encoded:
        """The configurations as numbers, for every search of them."""
        return Encoded(self.configs)

    @cached_property
    def digest(self) -> str:
        """Tells spaces apart whose files have the same name: of all configurations and times."""
        hasher = hashlib.sha256(repr(self.configs).encode())
        hasher.update(self.times_ms.tobytes())
        return hasher.hexdigest()[:16]

    @cached_property
    def baselines(self) -> dict[int, NDArray[np.float64]]:
        """What `replay.expected_best` found for so many evaluations; grows."""
        return {}

    @property
    def near_optimum(self) -> float:
        """Share of the configurations within 5 % of the optimum: how hard the space is."""
        return float(np.mean(self.times_ms <= self.optimum_ms / 0.95))


def write_t4(space: RecordedSpace, path: Path) -> None:
    """Writes a space as T4 results, gzipped if the name ends in `.gz`; the same bytes every time.

    Raises:
        TuneError: the file cannot be written.
    """
    results = [
        {
            "configuration": config,
            "times": {"runtimes": list(runtimes)},
            "invalidity": reason,
            "correctness": int(reason == "correct"),
            "measurements": [{"name": "time", "value": math.fsum(runtimes) / len(runtimes),
                              "unit": "ms"}] if runtimes else [],
            "objectives": ["time"],
        }
        for config, runtimes, reason in zip(
            space.configs, space.runtimes, space.reasons, strict=True
        )
    ]  # fmt: skip
    document = {
        "schema_version": SCHEMA_VERSION,
        "metadata": {**space.metadata, "timeunit": "milliseconds"},
        "results": results,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    if path.name.endswith(".gz"):
        text = gzip.compress(text, mtime=0)
    _write(text, path)


def write_cache(space: RecordedSpace, path: Path) -> None:
    """Writes a space as kernel_tuner's cache, which its simulation mode searches.

    Every failure becomes one that it knows; values are listed as it sorts them into its keys.

    Raises:
        TuneError: the file cannot be written, or two configurations have one key there: it joins
            values as text, so that 1 and "1" are the same.
    """
    names = list(space.configs[0])
    entries: dict[str, Config] = {}
    for config, runtimes in zip(space.configs, space.runtimes, strict=True):
        time = math.fsum(runtimes) / len(runtimes) if runtimes else "RuntimeFailedConfig"
        key = ",".join(str(config[name]) for name in names)
        if key in entries:
            raise TuneError(f"{space.name}: two configurations are {key} in kernel_tuner's cache")
        entries[key] = {**config, "time": time, "times": list(runtimes)}
    values = {name: {config[name]: None for config in space.configs} for name in names}
    document = {
        "device_name": space.name,
        "kernel_name": space.name,
        "problem_size": "",
        "tune_params_keys": names,
        "tune_params": {
            name: sorted(found, key=lambda v: (isinstance(v, str), v))
            for name, found in values.items()
        },
        "objective": "time",
        "cache": entries,
    }
    _write(json.dumps(document).encode(), path)


def _write(text: bytes, path: Path) -> None:
    try:
        with written_whole(path) as file:
            file.write(text)
    except OSError as error:
        raise TuneError(f"cannot write {path}: {error.strerror or error}") from None
