"""Proposals from elsewhere, mixed with the search's own: a guard against misleading experience.

What was fast on other devices, for other problems or in an earlier run is tried first, but not
blindly. Two rules, both functions of what was tried alone, so that a resumed search or a second
worker comes to the same decision:

* Of any first n trials, at most 70 % are such seeds; the search's own lie between them, and while
  seeds are left those are random draws.
* Seeds that do no better than these draws are followed no further. Better is: the middle one's
  time is shorter. Two draws and two seeds are needed to say so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kernelforge.tune.acquisition import Proposer

MOST_SEEDED = (7, 10)
"""Of so many trials, so few may be seeds: as whole numbers, so that no rounding lets one more in."""
ENOUGH = 2
"""Seeds, and draws, that are compared at the least."""


class SeededProposer:
    """A proposer that is told where to begin.

    Args:
        own: proposes everything else.
        first: indices to try before anything else, in order: the default. They are no seeds.
        seeds: indices that experience from elsewhere suggests, the most promising first.
    """

    def __init__(
        self, own: Proposer, first: Sequence[int] = (), seeds: Sequence[int] = ()
    ) -> None:
        self._own = own
        self._first = tuple(dict.fromkeys(first))
        self._seeds = tuple(i for i in dict.fromkeys(seeds) if i not in self._first)

    def copy(self) -> SeededProposer:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._own = self._own.copy()
        return other

    def propose(self, seen: Mapping[int, float | None], rng: np.random.Generator) -> int | None:
        """The index to try next; as `Proposer.propose`."""
        for index in self._first:
            if index not in seen:
                return index
        left = [index for index in self._seeds if index not in seen]
        if not left or self._mislead(seen):
            return self._own.propose(seen, rng)
        seeded = len(self._seeds) - len(left) + 1
        if MOST_SEEDED[1] * seeded <= MOST_SEEDED[0] * (len(seen) + 1):
            return left[0]
        untried = np.setdiff1d(np.arange(self._own.size), [*seen, *left])
        return int(rng.choice(untried)) if untried.size else left[0]

    def _mislead(self, seen: Mapping[int, float | None]) -> bool:
        """Whether the seeds tried so far are no better than what else was tried."""
        known = set(self._seeds)
        finished = {i: t for i, t in seen.items() if t is not None}
        seeds = [time for index, time in finished.items() if index in known]
        others = [t for i, t in finished.items() if i not in known and i not in self._first]
        if min(len(seeds), len(others)) < ENOUGH:
            return False
        # Failures are the slowest of all; where everything failed, neither side is better.
        middle = float(np.median(seeds)) if all(map(math.isfinite, seeds)) else _middle(seeds)
        return not middle < _middle(others)


def _middle(times: Sequence[float]) -> float:
    """The lower median, which is a time that was measured, if half of them are."""
    return sorted(times)[(len(times) - 1) // 2]
