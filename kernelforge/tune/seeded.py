"""Proposals from elsewhere, mixed with the search's own: a guard against misleading experience.

What was fast on other devices, for other problems or in an earlier run is tried first, but not
blindly. Two rules, both functions of what was tried alone, so that a resumed search or a second
worker comes to the same decision:

* Of any first n trials, at most 70 % are such seeds; the search's own lie between them, and while
  seeds are left those are random draws.
* Once one of these draws is as fast as the fastest seed, seeds are followed no further: what knows
  no better than chance is no guide.

The search's own start is as long as without seeds: a model needs to know the space around them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from kernelforge.tune.acquisition import RANDOM_FIRST, Proposer

MOST_SEEDED = (7, 10)
"""Of ten trials seven: whole numbers, so that no rounding lets one more in."""


class SeededProposer:
    """A proposer that is told where to begin.

    Args:
        own: proposes everything else.
        first: indices to try before anything else, in order: the default. They are no seeds.
        seeds: indices that experience from elsewhere suggests, the most promising first.
        random_first: random draws before `own` is asked, where there are seeds.
    """

    def __init__(
        self,
        own: Proposer,
        first: Sequence[int] = (),
        seeds: Sequence[int] = (),
        random_first: int = RANDOM_FIRST,
    ) -> None:
        self._own, self._random_first = own, random_first
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
        drawn = len([i for i in seen if i not in self._first and i not in self._seeds])
        if not left or self._mislead(seen):
            if not self._seeds or drawn >= self._random_first:
                return self._own.propose(seen, rng)
            left = []
        seeded = len(self._seeds) - len(left) + 1
        if left and MOST_SEEDED[1] * seeded <= MOST_SEEDED[0] * (len(seen) + 1):
            return left[0]
        untried = np.setdiff1d(np.arange(self._own.size), [*seen, *left])
        if not untried.size:
            return left[0] if left else None
        return int(rng.choice(untried))

    def _mislead(self, seen: Mapping[int, float | None]) -> bool:
        """Whether something that was not suggested is as fast as all that was."""
        known = set(self._seeds)
        done = {i: t for i, t in seen.items() if t is not None and i not in self._first}
        seeds = [time for index, time in done.items() if index in known]
        others = [time for index, time in done.items() if index not in known]
        return bool(seeds and others) and not min(seeds) < min(others)
