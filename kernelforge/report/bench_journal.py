"""The record of model benches: append-only JSON lines beside the journal of kernel measurements.

`kernelforge bench` appends, `kernelforge report` reads. Nothing in it names a person's folder: a
model is known by its file's stem, a bundle by its slug and hash.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.errors import MeasureError, ReportError
from kernelforge.measure import statistics

if TYPE_CHECKING:  # it brings the compiler's imports, which a bench can do without
    from kernelforge.measure.baseline import Ceilings

log = logging.getLogger(__name__)

BENCH_FILE = "bench.jsonl"


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
            values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            for name in ("host_us", "read_gbps"):
                if values.get(name, 0) is None:
                    values[name] = math.nan
            values["tok_per_s"] = tuple(float(v) for v in values["tok_per_s"])
            values["operations"] = tuple(_operation(o) for o in values.get("operations", ()))
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"no bench record: {type(error).__name__}: {error}") from error


def _operation(data: Mapping[str, Any]) -> Operation:
    us = float(data["us"])
    if not 0 <= us < math.inf:
        raise ValueError(f"an operation of {us} us")
    return Operation(str(data["name"]), str(data["family"]), int(data["count"]), us)


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
        with path.open("ab+", buffering=0) as file:
            if file.tell() > 0:
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # what a killed process left half written
                    text = "\n" + text
            file.write(text.encode())
    except OSError as error:
        raise ReportError(
            f"cannot write {path}: {error.strerror or error}; name another folder in XDG_DATA_HOME"
        ) from error


def read_limits(path: Path, kind: str) -> dict[str, Any] | None:
    """The last record of this kind: `matmul`, another library's matrix products, or `fft`.

    None where there is none.
    """
    found: dict[str, Any] | None = None
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return None
    for line in lines:
        if f'"{kind}"'.encode() in line:
            try:
                data = json.loads(line)
                found = data if data.get("kind") == kind else found
            except (ValueError, AttributeError):
                continue
    return found


def read_bench(path: Path) -> tuple[list[BenchRecord], Ceilings | None]:
    """Every whole record in order, and the last ceilings; damaged lines are skipped with a warning.

    Raises:
        ReportError: the file exists but cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], None
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    from kernelforge.measure.baseline import Ceilings

    records: list[BenchRecord] = []
    ceilings: Ceilings | None = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if data["kind"] == "ceilings":
                ceilings = Ceilings.from_json(data)
            elif data["kind"] == "bench":
                records.append(BenchRecord.from_json(data))
        except (ValueError, TypeError, KeyError, ReportError, MeasureError) as error:
            log.warning("%s line %d is damaged and was skipped (%s)", path, number, error)
    return records, ceilings
