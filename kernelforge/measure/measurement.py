"""What is kept of one trial: how it ended, how long it took, and what exactly was measured.

Plain data; `bench` fills it in, `tune.journal` stores it, reports read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from enum import Enum
from typing import Any

from kernelforge.errors import MeasureError
from kernelforge.measure import journal_lines


class Outcome(Enum):
    """How a trial ended. Only OK has times that may be compared."""

    OK = "OK"
    REJECTED = "REJECTED"  # cannot exist here: a constraint, a missing feature, a limit
    COMPILE_FAILED = "COMPILE_FAILED"
    WRONG_RESULT = "WRONG_RESULT"
    TIMED_OUT = "TIMED_OUT"  # the device did not finish in time
    DEVICE_LOST = "DEVICE_LOST"  # the driver said so
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CRASHED = "CRASHED"  # its process was ended by a signal
    ABORTED = "ABORTED"  # its process ended itself: abort(), a failed assertion, an exit
    HUNG = "HUNG"  # its process did not answer in time and was killed


LOSSES = frozenset(
    {Outcome.TIMED_OUT, Outcome.DEVICE_LOST, Outcome.CRASHED, Outcome.ABORTED, Outcome.HUNG}
)
"""Outcomes after which the device, or the process that had it, cannot be used any more."""
ENDED = "ended its worker process"
"""Note of a measurement that cost a worker process its life."""


class LostError(MeasureError):
    """A variant took the process that ran it along.

    Attributes:
        outcome: what it is recorded as.
    """

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True)
class Measurement:
    """One variant on one problem on one device. Times in ns per dispatch.

    Attributes:
        variant: full name, `gemv/f16/ROWS4.WORKGROUP64`.
        reason: one line that says why the outcome is not OK; empty for OK.
        samples_ns: every sample taken, in order; empty where nothing was timed.
        median_ns: median of the samples; NaN where nothing was timed.
        corrected_ns: the median as it would have been at the start of the search, where the device
            has become slower or faster since (see tune/drift.py); NaN where nothing was timed.
        spread_ns: median absolute deviation of the samples; NaN where nothing was timed.
        dispatches: dispatches per sample.
        clock: "timestamp" (device time) or "host" (wall clock around submit and wait).
        cold: True where inputs were rotated through more memory than a last-level cache holds.
        max_error: largest absolute error of the verification run; NaN where none was made.
        tolerance: what was allowed at the place of that error.
        seed: of the verification inputs.
        setup_s: seconds that the first run took, the driver's own compiling included.
        phase: "trial" while searching, "final" for the interleaved re-measurement of the best.
        note: free text, e.g. "early stop" or "same SPIR-V as ...".
        origin: who proposed a trial: "default", "this run" (winners of its other problems), "warm
            start" (of bundles that were given), "portfolio", "search" or "layout" (the fastest in
            another layout); empty where unknown.
        device: slug of the device.
        driver: name and version, as the driver gives them.
    """

    family: str
    precision: str
    problem: str
    variant: str
    outcome: Outcome
    reason: str = ""
    median_ns: float = math.nan
    spread_ns: float = math.nan
    samples_ns: tuple[float, ...] = ()
    dispatches: int = 0
    clock: str = ""
    cold: bool = False
    max_error: float = math.nan
    tolerance: float = math.nan
    seed: int = 0
    setup_s: float = 0.0
    corrected_ns: float = math.nan
    glsl_sha256: str = ""
    template_sha256: str = ""
    spirv_sha256: str = ""
    phase: str = "trial"
    note: str = ""
    origin: str = ""
    device: str = ""
    driver: str = ""

    @property
    def ok(self) -> bool:
        """True where the result was right and a time was taken."""
        return self.outcome is Outcome.OK and 0 < self.median_ns < math.inf

    @property
    def time_ns(self) -> float:
        """The time to compare within a search: corrected where that is known."""
        return self.corrected_ns if math.isfinite(self.corrected_ns) else self.median_ns

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN becomes None, as JSON has no NaN."""
        data: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Outcome):
                value = value.value
            elif isinstance(value, tuple):
                value = [round(v, 1) for v in value]
            elif isinstance(value, float) and not math.isfinite(value):
                value = None if math.isnan(value) else ("inf" if value > 0 else "-inf")
            data[field.name] = value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Reads what `to_json` wrote; names that are not known are ignored.

        Raises:
            MeasureError: a field that must be there is missing or has a wrong form.
        """
        try:
            values = {f.name: _reader(f)(data[f.name]) for f in fields(cls) if f.name in data}
            return cls(**values)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MeasureError(
                f"measurement {str(data)[:80]!r}: {type(error).__name__}: {error}; "
                "the line was not written by this program or is damaged"
            ) from error


def _samples(value: object) -> tuple[float, ...]:
    found = tuple(journal_lines.time_ns(v) for v in value) if isinstance(value, list) else ()
    if not isinstance(value, list) or not all(map(math.isfinite, found)):
        raise ValueError("samples are no list of times")
    return found


def _free_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__}, expected text")
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "str": journal_lines.name,
    "int": journal_lines.whole,
    "float": journal_lines.number,
    "bool": bool,
    "Outcome": Outcome,
    "tuple[float, ...]": _samples,
    "median_ns": journal_lines.time_ns,
    "corrected_ns": journal_lines.time_ns,
    "spread_ns": journal_lines.time_ns,
    "reason": _free_text,
    "note": _free_text,
}
"""By a field's name, or by its type as it is written above."""


def _reader(field: Field[Any]) -> Callable[[Any], Any]:
    return _READ.get(field.name) or _READ[str(field.type)]
