"""Tuning spaces that were measured once and for all, read from the forms in which others keep them.

With every time known, a search can be replayed in a second and scored against the true optimum.
Forms, told apart by content: kernel_tuner's cache files; results of the open T4 schema
(github.com/odgaard/TuningSchema), which is also what we write; and NumPy archives with `keys`,
`configs` and `times_ms`. JSON may be gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import TuneError
from kernelforge.tune.encoded import Encoded

SCHEMA_VERSION = "1.0.0"
MOST_BYTES = 1 << 30
"""Of a file once unpacked: a small archive may hold more than any memory."""
GZIP_MAGIC = b"\x1f\x8b"
_ALLOWED = (int, float, str, bool)

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

    @property
    def near_optimum(self) -> float:
        """Share of the configurations within 5 % of the optimum: how hard the space is."""
        return float(np.mean(self.times_ms <= self.optimum_ms / 0.95))


def read_space(path: Path) -> RecordedSpace:
    """Reads a recorded space in any of the forms.

    Raises:
        TuneError: the file cannot be read, has another form, or not one configuration worked.
    """
    try:
        data = _unpacked(path)
        if data[:4] == b"PK\x03\x04":
            found = _from_archive(path)
        else:
            found = _from_json(path, json.loads(data))
    except OSError as error:
        raise TuneError(f"--replay {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise TuneError(
            f"--replay {path}: no recorded space (kernel_tuner's cache, T4 results or a NumPy "
            f"archive with keys, configs and times_ms): {type(error).__name__}: {error}"
        ) from None
    if not np.isfinite(found.times_ms).any():
        raise TuneError(f"--replay {path}: not one of {len(found.configs)} configurations worked")
    return found


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
        TuneError: the file cannot be written.
    """
    names = list(space.configs[0])
    entries = {}
    for config, runtimes in zip(space.configs, space.runtimes, strict=True):
        time = math.fsum(runtimes) / len(runtimes) if runtimes else "RuntimeFailedConfig"
        key = ",".join(str(config[name]) for name in names)
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
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TuneError(f"cannot write {path}: {error.strerror or error}") from None


def _unpacked(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(2)
    if head != GZIP_MAGIC:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
        return path.read_bytes()
    with gzip.open(path) as packed:
        data = packed.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"unpacks to more than {MOST_BYTES >> 20} MiB")
    return data


def _from_json(path: Path, document: Any) -> RecordedSpace:
    if "cache" in document:
        return _from_cache(path, document)
    if "results" in document:
        return _from_t4(path, document["results"], document.get("metadata") or {})
    raise ValueError("neither `cache` nor `results` in it")


def _from_cache(path: Path, document: Mapping[str, Any]) -> RecordedSpace:
    names = list(document["tune_params_keys"])
    configs, runtimes, reasons = [], [], []
    for entry in document["cache"].values():
        configs.append({name: entry[name] for name in names})
        if isinstance(entry["time"], int | float):
            runtimes.append(entry.get("times") or [entry["time"]])
            reasons.append("correct")
        else:  # the name of an error's class
            runtimes.append([])
            reasons.append("compile" if "Compil" in entry["time"] else "runtime")
    return _space(path, configs, runtimes, reasons)


def _from_t4(
    path: Path, results: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]
) -> RecordedSpace:
    configs, runtimes, reasons = [], [], []
    for result in results:
        reason = result["invalidity"]
        measured = [m["value"] for m in result.get("measurements", ()) if m["name"] == "time"]
        configs.append(dict(result["configuration"]))
        times = result["times"].get("runtimes") or measured
        runtimes.append(times if reason == "correct" else [])
        reasons.append(str(reason))
    told = {k: v for k, v in metadata.items() if isinstance(v, str) and k != "timeunit"}
    return replace(_space(path, configs, runtimes, reasons), metadata=told)


def _from_archive(path: Path) -> RecordedSpace:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
            raise ValueError(f"unpacks to more than {MOST_BYTES >> 20} MiB")
    with np.load(path, allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["keys"]]
        rows, times = arrays["configs"], np.asarray(arrays["times_ms"], np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(names) or len(times) != len(rows):
        raise ValueError(f"configs {rows.shape} and times_ms {times.shape} do not fit {names}")
    configs = [dict(zip(names, row.tolist(), strict=True)) for row in rows]
    whole = [bool(np.isfinite(row).all()) for row in times]
    runtimes = [row.tolist() if ok else [] for row, ok in zip(times, whole, strict=True)]
    return _space(path, configs, runtimes, ["correct" if ok else "runtime" for ok in whole])


def _space(
    path: Path,
    configs: Sequence[Config],
    runtimes: Sequence[Sequence[Any]],
    reasons: Sequence[str],
) -> RecordedSpace:
    if not configs:
        raise ValueError("no configuration in it")
    names = set(configs[0])
    if any(set(config) != names for config in configs):
        raise ValueError("configurations with unlike parameters")
    if any(not isinstance(value, _ALLOWED) for config in configs for value in config.values()):
        raise ValueError("a parameter's value is neither number nor text")
    if len({tuple(sorted(c.items(), key=lambda item: item[0])) for c in configs}) != len(configs):
        raise ValueError("a configuration occurs twice")
    clean = tuple(tuple(float(t) for t in times) for times in runtimes)
    if any(not (math.isfinite(t) and t > 0) for times in clean for t in times):
        raise ValueError("a time is no positive number")
    name = path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".npz")
    return RecordedSpace(name, tuple(configs), clean, tuple(reasons))
