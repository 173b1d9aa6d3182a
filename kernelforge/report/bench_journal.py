"""The record of model benches: append-only JSON lines beside the journal of kernel measurements.

`kernelforge bench` appends, `kernelforge report` reads. Nothing in it names a person's folder: a
model is known by its file's stem, a bundle by its slug and hash.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.errors import ReportError
from kernelforge.measure import journal_lines, statistics
from kernelforge.measure.journal_lines import read_lines
from kernelforge.tune.journal import append_whole

if TYPE_CHECKING:  # it brings the compiler's imports, which a bench can do without
    from kernelforge.measure.baseline import Ceilings

BENCH_FILE = "bench.jsonl"
LEFT_OUT = "left-out"
"""Kind of the lines that say which other engines could not be run, and why."""
LEAST_SPEED, MOST_SPEED = 1e-4, 1e12
"""Tokens per second that can be: a line that says others was not written by a bench."""
MOST_US = 1e12


@dataclass(frozen=True)
class Operation:
    """One operation of a decoded token, all layers added up.

    Attributes:
        name: the weight or state that it works on, without its layer.
        family: of its kernel.
        count: dispatches per token.
        us: of all of them, microseconds.
    """

    name: str
    family: str
    count: int
    us: float


@dataclass(frozen=True)
class BenchRecord:
    """One test of one model with one bundle: `pp256`, prefill of 256 tokens, or `tg64`, decode.

    Attributes:
        time: when the run began, UTC, ISO 8601.
        model: stem of the file's name.
        version: `rwkv7` and so on.
        sizes: `L12 C768 V65536`.
        parameters: weights in the file.
        device: slug.
        weights: format, `f16`.
        bundle: slug of the first bundle, `generic` for the one that is not tuned.
        bundle_sha256: of its manifest.
        kernels: how exact the kernels are, in words: dispatches of a step per match.
        test: `pp` or `tg` and the number of tokens.
        tok_per_s: one value per repetition, in order.
        pair: records of one run with the same pair were measured in turns; "" where not compared.
        host_us: of decoding: host time per token that is not waiting for the device.
        touched_bytes: of decoding: weight bytes that one token needs.
        state_bytes: recurrent state of one sequence.
        dispatches: of decoding: per token.
        step_dispatches: of a step of this test: one token, or the prompt's first chunk.
        layer_dispatches: of these, per layer of the model, the mean.
        read_gbps: measured read bandwidth of the device at the time.
        weight_bytes: of the whole model on the device; 0 where unknown.
        operations: of decoding: where a token's time goes; empty where not looked at.
        operations_from: "traced", by timestamps on the device, or "packed", by the times that the
            bundle gives its kernels.
        peer: another engine's name; then `bundle` is its version. "" of ours.
    """

    time: str
    model: str
    version: str
    sizes: str
    parameters: int
    device: str
    device_name: str
    device_type: str
    driver: str
    weights: str
    bundle: str
    bundle_sha256: str
    kernels: str
    test: str
    tok_per_s: tuple[float, ...]
    pair: str = ""
    host_us: float = math.nan
    touched_bytes: int = 0
    state_bytes: int = 0
    dispatches: int = 0
    step_dispatches: int = 0
    layer_dispatches: float = 0.0
    read_gbps: float = math.nan
    kernelforge: str = ""
    weight_bytes: int = 0
    operations: tuple[Operation, ...] = ()
    operations_from: str = ""
    peer: str = ""

    @property
    def median(self) -> float:
        """Median tokens per second."""
        return statistics.median(self.tok_per_s)

    @property
    def mean(self) -> float:
        """Mean tokens per second."""
        return math.fsum(self.tok_per_s) / len(self.tok_per_s) if self.tok_per_s else math.nan

    @property
    def spread(self) -> float:
        """Median absolute deviation, tokens per second; NaN of a single repetition."""
        return statistics.spread(self.tok_per_s) if len(self.tok_per_s) > 1 else math.nan

    @property
    def decodes(self) -> bool:
        """Whether this is a test of decoding."""
        return self.test.startswith("tg")

    @property
    def gbps(self) -> float:
        """Weight bytes per second while decoding, GB/s; NaN of prefill."""
        return self.touched_bytes * self.median / 1e9 if self.decodes else math.nan

    @property
    def read_share(self) -> float:
        """Share of the measured read bandwidth; above 1 where weights stay in a cache."""
        return self.gbps / self.read_gbps if self.read_gbps > 0 else math.nan

    @property
    def is_generic(self) -> bool:
        """Whether the kernels were not tuned for anything."""
        return self.bundle == "generic"

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN becomes None."""
        data = asdict(self)
        for name, value in data.items():
            if isinstance(value, float) and not math.isfinite(value):
                data[name] = None
        data["tok_per_s"] = [round(v, 4) for v in self.tok_per_s]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchRecord:
        """Reads what `to_json` wrote; names that are not known are ignored.

        Raises:
            ReportError: a field is missing or has a wrong form.
        """
        try:
            values = {f.name: _reader(f)(data[f.name]) for f in fields(cls) if f.name in data}
            return cls(**values)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ReportError(f"no bench record: {type(error).__name__}: {error}") from error


def _operation(data: Mapping[str, Any]) -> Operation:
    us = journal_lines.within(data["us"], 0, MOST_US)
    return Operation(
        journal_lines.name(data["name"]),
        journal_lines.name(data["family"]),
        journal_lines.whole(data["count"]),
        us,
    )


def _test(value: object) -> str:
    found = journal_lines.name(value)
    if not re.fullmatch(r"(pp|tg)[1-9][0-9]{0,8}", found):
        raise ValueError(f"a test {found[:20]!r}, expected a form like pp256 or tg64")
    return found


def _speeds(value: Sequence[object]) -> tuple[float, ...]:
    found = tuple(journal_lines.within(v, LEAST_SPEED, MOST_SPEED) for v in value)
    if not found:
        raise ValueError("no repetitions")
    return found


_READ: dict[str, Callable[[Any], Any]] = {
    "str": journal_lines.name,
    "int": journal_lines.whole,
    "float": journal_lines.number,
    "test": _test,
    "tok_per_s": _speeds,
    "operations": lambda value: tuple(_operation(one) for one in value),
}
"""By a field's name, or by its type as it is written above."""


def _reader(field: Field[Any]) -> Callable[[Any], Any]:
    return _READ.get(field.name) or _READ[str(field.type)]


def paired(tuned: BenchRecord, other: BenchRecord) -> statistics.Interval:
    """How many times faster `tuned` is: median of the ratios of pairs, with its interval."""
    return statistics.paired_ratio(tuned.tok_per_s, other.tok_per_s)


def append_bench(
    path: Path,
    records: Sequence[BenchRecord],
    ceilings: Ceilings | None = None,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Adds records, and the ceilings and others' limits that were measured with them, at once.

    Limits go by their kind, see `read_limits`.

    Raises:
        ReportError: the file cannot be written.
    """
    lines = [{"kind": "bench", **record.to_json()} for record in records]
    if ceilings is not None:
        time = max((record.time for record in records), default="")
        lines.insert(0, {"kind": "ceilings", "time": time, **ceilings.to_json()})
    lines += [{"kind": kind, **found} for kind, found in (limits or {}).items()]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        append_whole(path, text.encode())
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}; name another folder in XDG_DATA_HOME"
        ) from error


def read_limits(path: Path, kind: str) -> dict[str, Any] | None:
    """The last record of this kind; None where there is none.

    Kinds are `matmul`, another library's matrix products, `fft`, and `LEFT_OUT`.
    """

    def wanted(data: dict[str, Any]) -> dict[str, Any] | None:
        return data if data.get("kind") == kind else None

    try:
        return next(reversed(read_lines(path, wanted, f'"{kind}"', warn=False)), None)
    except OSError:
        return None


def read_bench(path: Path) -> tuple[list[BenchRecord], Ceilings | None]:
    """Every whole record in order, and the last ceilings; damaged lines are skipped with a warning.

    Raises:
        ReportError: the file exists but cannot be read.
    """
    if not path.exists():
        return [], None
    from kernelforge.measure.baseline import Ceilings

    def read(data: dict[str, Any]) -> BenchRecord | Ceilings | None:
        if data["kind"] == "ceilings":
            return Ceilings.from_json(data)
        return BenchRecord.from_json(data) if data["kind"] == "bench" else None

    try:
        found = read_lines(path, read)
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    records = [one for one in found if isinstance(one, BenchRecord)]
    ceilings = [one for one in found if isinstance(one, Ceilings)]
    return records, ceilings[-1] if ceilings else None
