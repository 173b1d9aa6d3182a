"""Reads recorded spaces from the forms in which others keep them.

Forms, told apart by content: kernel_tuner's cache files, also those that it never closed; results
of the open T4 schema; and NumPy archives with `keys`, `configs` and `times_ms`. JSON may be
gzipped. What did not work has no time, or one that is none: infinite, not a number, or the 1e20
that kernel_tuner once wrote.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import TuneError
from kernelforge.tune.recorded import Config, RecordedSpace

MOST_BYTES = 1 << 30
"""Of a file once unpacked: a small archive may hold more than any memory."""
GZIP_MAGIC = b"\x1f\x8b"
FAILED_MS = 1e20
"""From here on a time is kernel_tuner's old word for a failure."""
MOST_VALUE = 1e100
"""Of a parameter, either way: searches take differences of values, and what overflows is none."""
_UNITS = {
    "s": 1e3, "sec": 1e3, "second": 1e3, "seconds": 1e3,
    "": 1.0, "ms": 1.0, "msec": 1.0, "millisecond": 1.0, "milliseconds": 1.0,
    "us": 1e-3, "usec": 1e-3, "µs": 1e-3, "μs": 1e-3, "microsecond": 1e-3, "microseconds": 1e-3,
    "ns": 1e-6, "nsec": 1e-6, "nanosecond": 1e-6, "nanoseconds": 1e-6,
}  # fmt: skip
"""Milliseconds per unit."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_REFUSED = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RecursionError,
    NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error, gzip.BadGzipFile,
)  # fmt: skip
"""What the readers of JSON, gzip and archives say of a file that is none, or is damaged."""


def read_space(path: Path) -> RecordedSpace:
    """Reads a recorded space in any of the forms.

    Raises:
        TuneError: the file cannot be read, has another form, or not one configuration worked.
    """
    try:
        data = _unpacked(path)
        found = _from_archive(path) if data[:4] == b"PK\x03\x04" else _from_json(path, _json(data))
    except _REFUSED as error:
        why = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise TuneError(
            f"--replay {path}: no recorded space (kernel_tuner's cache, T4 results or a NumPy "
            f"archive with keys, configs and times_ms): {why or type(error).__name__}"
        ) from None
    except OSError as error:
        raise TuneError(f"--replay {path}: {error.strerror or error}") from None
    if not np.isfinite(found.times_ms).any():
        raise TuneError(f"--replay {path}: not one of {len(found.configs)} configurations worked")
    return found


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


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        # kernel_tuner writes entry after entry and closes the file when it is done.
        text = data.decode().rstrip()
        if not text.endswith(",") or '"cache"' not in text:
            raise
        return json.loads(text[:-1] + "}}")


def _from_json(path: Path, document: Any) -> RecordedSpace:
    if isinstance(document, list) and document and isinstance(document[0], dict):
        document = {"results": document}
    if isinstance(document, dict):
        if "cache" in document:
            return _from_cache(path, document)
        if "results" in document:
            return _from_t4(path, document["results"], document.get("metadata") or {})
    raise ValueError("neither `cache` nor `results` in it")


def _from_cache(path: Path, document: Mapping[str, Any]) -> RecordedSpace:
    names = list(document.get("tune_params_keys") or document["tune_params"])
    _require_distinct(names)
    configs, runtimes, reasons = [], [], []
    for key, entry in document["cache"].items():
        if missing := [name for name in names if name not in entry]:
            raise ValueError(f"entry {key!r} has no {missing[0]}")
        configs.append({name: entry[name] for name in names})
        told = entry.get("time", entry.get("__error__"))
        times = _worked([told]) and (_worked(entry.get("times")) or [float(told)])
        runtimes.append(times)
        reasons.append(_reason(times, told))
    return _space(path, configs, runtimes, reasons)


def _reason(times: Sequence[float], told: Any) -> str:
    if times:
        return "correct"
    return "compile" if "Compil" in str(told) else "runtime"  # the name of an error's class


def _from_t4(
    path: Path, results: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]
) -> RecordedSpace:
    timeunit = str(metadata.get("timeunit") or "")
    configs, runtimes, reasons = [], [], []
    for result in results:
        configs.append(dict(result["configuration"]))
        measured, unit = _measured(result, timeunit)
        kept = _worked((result.get("times") or {}).get("runtimes"))
        # Without a unit for all, that of the measurement stands for the repetitions too.
        scale = _scale(timeunit or unit)
        times = [t * scale for t in kept] or [t * _scale(unit) for t in measured]
        reason = str(result.get("invalidity") or ("correct" if times else "runtime"))
        if reason == "correct" and not result.get("correctness", 1):
            reason = "correctness"
        if reason == "correct" and not times:
            reason = "runtime"
        runtimes.append(times if reason == "correct" else [])
        reasons.append(reason)
    told = {k: v for k, v in metadata.items() if isinstance(v, str) and k != "timeunit"}
    return replace(_space(path, configs, runtimes, reasons), metadata=told)


def _measured(result: Mapping[str, Any], timeunit: str) -> tuple[list[float], str]:
    """What was measured as time, and in which unit."""
    found = {m["name"]: m for m in result.get("measurements") or ()}
    for name in ("time", *(result.get("objectives") or ())):
        unit = str(found.get(name, {}).get("unit") or timeunit)
        if name in found and (name == "time" or (unit and unit.lower() in _UNITS)):
            return _worked([found[name].get("value")]), unit
    return [], timeunit


def _scale(unit: str) -> float:
    try:
        return _UNITS[unit.strip().lower()]
    except KeyError:
        raise ValueError(f"times in {unit!r}, which is no unit of time") from None


def _worked(times: Any) -> list[float]:
    """The repetitions' times; nothing where one of them is no time of something that worked."""
    listed = list(times) if isinstance(times, list | tuple) else []
    numbers = [t for t in listed if isinstance(t, int | float) and not isinstance(t, bool)]
    if len(numbers) < len(listed) or not all(-math.inf < t < FAILED_MS for t in numbers):
        return []
    return [float(t) for t in numbers]


def _from_archive(path: Path) -> RecordedSpace:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
            raise ValueError(f"unpacks to more than {MOST_BYTES >> 20} MiB")
    with np.load(path, allow_pickle=False) as arrays:
        rows, told = arrays["configs"], arrays["times_ms"]
        if np.iscomplexobj(told):
            raise ValueError("times_ms are complex numbers")
        times = np.asarray(told, np.float64)
        if rows.dtype.names:  # a record of named fields
            names = list(rows.dtype.names)
            columns = [_column(rows[name]) for name in names]
        else:
            names = [str(name) for name in np.atleast_1d(arrays["keys"])]
            if rows.ndim != 2 or rows.shape[1] != len(names):
                raise ValueError(f"configs {rows.shape} do not fit {len(names)} keys")
            _require_distinct(names)
            columns = [_column(rows[:, i]) for i in range(len(names))]
    if times.ndim == 1:
        times = times[:, None]
    if times.ndim != 2 or len(times) != len(rows):
        raise ValueError(f"times_ms {times.shape} do not fit {len(rows)} configurations")
    configs = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    runtimes = [_worked(row) for row in times.tolist()]
    return _space(path, configs, runtimes, ["correct" if t else "runtime" for t in runtimes])


def _column(values: NDArray[Any]) -> list[Any]:
    """A parameter's values; an array has one type, so numbers beside words were written as such."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    found: list[Any] = values.tolist()
    words = set(found) if values.dtype.kind == "U" else set()
    if words and words <= {"True", "False"}:
        return [word == "True" for word in found]
    if words and all(_NUMBER.fullmatch(word) for word in words):
        whole = all(word.lstrip("+-").isdigit() for word in words)
        read = {word: int(word) if whole else float(word) for word in words}
        if len(set(read.values())) == len(read):
            return [read[word] for word in found]
    return found


def _space(
    path: Path,
    configs: Sequence[Config],
    runtimes: Sequence[Sequence[float]],
    reasons: Sequence[str],
) -> RecordedSpace:
    if not configs or not configs[0]:
        raise ValueError("no configuration in it")
    names = list(configs[0])
    clean: dict[tuple[Any, ...], Config] = {}
    for config, times in zip(configs, runtimes, strict=True):
        if len(config) != len(names) or any(name not in config for name in names):
            raise ValueError(f"configurations with unlike parameters: {_named(config)}")
        values = tuple(_value(config[name]) for name in names)
        if values in clean:
            raise ValueError(f"a configuration occurs twice: {_named(config)}")
        if any(not t > 0 for t in times):
            raise ValueError(f"a time is no positive number: {_named(config)} took {min(times)}")
        clean[values] = dict(zip(names, values, strict=True))
    name = path.name.removesuffix(".gz").removesuffix(".json").removesuffix(".npz")
    kept = tuple(tuple(times) for times in runtimes)
    return RecordedSpace(name, tuple(clean.values()), kept, tuple(reasons))


def _value(value: Any) -> Any:
    """A parameter's value as searches know them: a number or a word."""
    if isinstance(value, str | int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"a parameter's value is {value}")
        if not isinstance(value, str) and not -MOST_VALUE <= value <= MOST_VALUE:
            raise ValueError(f"a parameter's value is beyond {MOST_VALUE:g}")
        return value
    return json.dumps(value)  # nothing, or a list: as good as a word


def _require_distinct(names: Sequence[str]) -> None:
    """Of two parameters with one name the first would be lost."""
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise ValueError(f"two parameters are called {twice[0]}")


def _named(config: Config) -> str:
    text = ", ".join(f"{name}={value}" for name, value in config.items())
    return text if len(text) <= 120 else f"{text[:117]}..."
