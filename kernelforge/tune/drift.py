"""How the device's speed moved during a search, and times with that taken out.

The default variant is timed every few trials. What it takes, against what it took first, is how
much slower (or faster) the device has become: heat, clocks, other load. A trial's time is divided
by the slowdown at its place, read off the straight line between the two nearest references. The
references are noisy themselves, and a correction by noise makes things worse: a move is left alone
where it is within NOISE, or within SURE standard errors of the two times that it was read from.

Workers that share a study have devices of their own, each with its own heat and its own neighbours:
a trial is corrected by what its own worker saw, and all of them against the first reference of all,
which also takes out what one device is always slower than another of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from kernelforge.measure.measurement import Measurement
from kernelforge.measure.statistics import median_error

EVERY = 10
"""Trials between two references."""
NOISE = 0.03
SURE = 2.0
ATTRIBUTE = "references"
"""Study attribute of each worker, its name behind a space: nobody else writes there, so that none
is lost. Without a name: those of a version that kept only one list."""


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
    """The references of one device, in the order in which they were taken.

    Args:
        references: what `to_json` gave.
        first: of another device of the same kind, against which this one is held; its own if None.
    """

    def __init__(
        self, references: Sequence[Sequence[float]] = (), first: Reference | None = None
    ) -> None:
        self._references = [Reference(int(n), float(ns), float(e)) for n, ns, e in references]
        self._first = first

    def add(self, number: int, measurement: Measurement) -> None:
        """One more reference, taken before trial `number`."""
        error = median_error(measurement.samples_ns)
        self._references.append(Reference(number, measurement.median_ns, error))

    def to_json(self) -> list[list[float]]:
        """What the constructor takes."""
        return [list(astuple(reference)) for reference in self._references]

    @property
    def references(self) -> tuple[Reference, ...]:
        """All of them."""
        return tuple(self._references)

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
        if not self._references:
            return 1.0
        first = self._first or self._references[0]
        places = [r.number for r in self._references]
        ratio = float(np.interp(number, places, [r.ns / first.ns for r in self._references]))
        error = float(np.interp(number, places, [r.error + first.error for r in self._references]))
        return 1.0 if abs(ratio - 1.0) <= max(NOISE, SURE * error) else ratio

    def correct(self, measurement: Measurement, number: int) -> Measurement:
        """The measurement of trial `number` with its corrected time."""
        slowdown = self.slowdown_at(number)
        return replace(measurement, corrected_ns=measurement.median_ns / slowdown)


class SharedDrift:
    """The references of all workers of a study.

    Args:
        attributes: of the study.
    """

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        lists: dict[str, Any] = {}
        for name, kept in attributes.items():
            if name == ATTRIBUTE or name.startswith(f"{ATTRIBUTE} "):
                with suppress(TypeError, ValueError):  # not written by this program
                    lists[name.removeprefix(ATTRIBUTE).strip()] = Drift(kept).to_json()
        taken = [r for kept in lists.values() for r in Drift(kept).references]
        self.first = min(taken, key=lambda r: r.number, default=None)
        """What all times are held against; None where the default was not timed yet."""
        self._of = {worker: Drift(kept, self.first) for worker, kept in lists.items()}

    def of(self, worker: str) -> Drift:
        """What a worker saw; nothing where it timed no default yet."""
        return self._of.get(worker) or self._of.get("") or Drift()

    def with_one(self, worker: str, number: int, measurement: Measurement) -> dict[str, Any]:
        """The worker's attribute with one more reference: name -> value."""
        own = Drift(self._of[worker].to_json() if worker in self._of else ())
        own.add(number, measurement)
        return {f"{ATTRIBUTE} {worker}": own.to_json()}

    @property
    def moved(self) -> bool:
        """Whether some worker's device was slower or faster at some reference, beyond noise."""
        return any(drift.moved for drift in self._of.values())
