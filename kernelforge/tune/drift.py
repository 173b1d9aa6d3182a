"""How the device's speed moved during a search, and times with that taken out.

The default variant is timed every few trials. What it takes, against what it took first, is how
much slower (or faster) the device has become: heat, clocks, other load. A trial's time is divided
by the slowdown at its place, read off the straight line between the two nearest references. The
references are noisy themselves, and a correction by noise makes things worse: a move is left alone
where it is within NOISE, or within SURE standard errors of the two times that it was read from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np

from kernelforge.measure.measurement import Measurement
from kernelforge.measure.statistics import median_error

EVERY = 10
"""Trials between two references."""
NOISE = 0.03
SURE = 2.0


@dataclass(frozen=True)
class Reference:
    """One time of the default variant.

    Attributes:
        number: of the trial before which it was taken.
        ns: its median.
        error: relative standard error of that.
    """

    number: int
    ns: float
    error: float


class Drift:
    """The references of one study, in the order in which they were taken."""

    def __init__(self, references: Sequence[Sequence[float]] = ()) -> None:
        self._references = [Reference(int(n), float(ns), float(e)) for n, ns, e in references]

    def add(self, number: int, measurement: Measurement) -> None:
        """One more reference, taken before trial `number`."""
        error = median_error(measurement.samples_ns)
        self._references.append(Reference(number, measurement.median_ns, error))

    def to_json(self) -> list[list[float]]:
        """What the constructor takes."""
        return [list(astuple(reference)) for reference in self._references]

    @property
    def times_ns(self) -> list[float]:
        """What the default took, in order."""
        return [reference.ns for reference in self._references]

    @property
    def moved(self) -> bool:
        """Whether the device was slower or faster at some reference, beyond noise."""
        return any(self.slowdown_at(r.number) != 1.0 for r in self._references)

    def slowdown_at(self, number: int) -> float:
        """How many times as long the device took at this trial as at the first reference."""
        if len(self._references) < 2:
            return 1.0
        first = self._references[0]
        places = [r.number for r in self._references]
        ratio = float(np.interp(number, places, [r.ns / first.ns for r in self._references]))
        error = float(np.interp(number, places, [r.error + first.error for r in self._references]))
        return 1.0 if abs(ratio - 1.0) <= max(NOISE, SURE * error) else ratio

    def correct(self, measurement: Measurement, number: int) -> Measurement:
        """The measurement of trial `number` with its corrected time."""
        slowdown = self.slowdown_at(number)
        return replace(measurement, corrected_ns=measurement.median_ns / slowdown)
