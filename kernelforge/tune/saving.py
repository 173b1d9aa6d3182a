"""How many trials a search was spared by what was known before it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kernelforge.measure.measurement import Measurement
from kernelforge.tune.objective import GOOD, first_good

KNOWN = frozenset({"this run", "warm start", "portfolio"})
"""Origins of trials that something known from elsewhere suggested; see `Measurement.origin`."""


@dataclass(frozen=True)
class Saving:
    """What the trials that were suggested from elsewhere brought one search, or cost it.

    Attributes:
        trials: how many later the search would have been within 95 % of its winner's speed by the
            trials that it proposed itself, the default among them; negative where suggestions were
            in its way.
        at_least: whether it never came there by itself, so that it may be more.
    """

    trials: int
    at_least: bool = False

    def __str__(self) -> str:
        """`12`, `at least 30`."""
        return f"at least {self.trials}" if self.at_least else str(self.trials)


def saving_of(found: Sequence[Measurement], winner: str) -> Saving | None:
    """What experience saved a search.

    Its own trials knew the others' results, too, which can only have helped them: without, it would
    hardly have been there sooner.

    Args:
        found: the search's measurements, in order, with drift taken out.
        winner: name of its variant.

    Returns:
        None where nothing was suggested, or where that cannot be told: the winner is none of these
        trials, or the search ended before its own ones were as many as it took with the others.
    """
    good = first_good(found, winner)
    if not good or not any(m.origin in KNOWN for m in found):
        return None
    enough = min(m.time_ns for m in found if m.ok and m.variant == winner) / GOOD
    own = [m for m in found if m.origin not in KNOWN]
    for number, measurement in enumerate(own, 1):
        if measurement.ok and measurement.time_ns <= enough:
            return Saving(number - good)
    return Saving(len(own) + 1 - good, at_least=True) if len(own) >= good else None
