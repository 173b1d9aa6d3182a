"""Proposals from elsewhere, mixed with the search's own: a guard against misleading experience.

What was fast on other devices, for other problems or in an earlier run is tried first, but not
blindly. Three rules, all functions of what was tried alone, so that a resumed search or a second
worker comes to the same decision:

* Of any first n trials, at most 70 % are such seeds; the search's own lie between them, and while
  seeds are left those are random draws.
* Once one of these draws is as fast as the fastest seed, seeds are followed no further: what knows
  no better than chance is no guide.
* Nor once a seed is clearly slower than what was known before it. They come in the order of their
  promise: where they fit, the first ones say so; where they do not, each one costs a trial.
* What comes from other kinds of devices alone comes late: after the search's random start, in turns
  with its own proposals, and no more once any other trial, the default too, is as fast.

Followed to their end, the search's own start is as long as without seeds: a model needs to know the
space around them. Seeds that were given up lie about like random draws, and count as such.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kernelforge.tune.acquisition import RANDOM_FIRST, Proposer

MOST_SEEDED = (7, 10)
"""Of ten trials seven: whole numbers, so that no rounding lets one more in."""
CLEARLY = 1.05
"""A seed that takes so many times as long as what was known disappoints; within, it is noise."""


class SeededProposer:
    """A proposer that is told where to begin.

    Args:
        own: proposes everything else.
        first: indices to try before anything else, in order: the default. They are no seeds.
        seeds: indices that experience from elsewhere suggests, the most promising first.
        random_first: random draws before `own` is asked, where there are seeds.
        late: indices that devices unlike this one suggest, the most promising first.
    """

    def __init__(
        self,
        own: Proposer,
        first: Sequence[int] = (),
        seeds: Sequence[int] = (),
        random_first: int = RANDOM_FIRST,
        late: Sequence[int] = (),
    ) -> None:
        self._own, self._random_first = own, random_first
        self._first = tuple(dict.fromkeys(first))
        self._seeds = tuple(i for i in dict.fromkeys(seeds) if i not in self._first)
        sooner = {*self._first, *self._seeds}
        self._late = tuple(i for i in dict.fromkeys(late) if i not in sooner)

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
        known = {*self._first, *self._seeds, *self._late}
        drawn = len([i for i in seen if i not in known])
        given_up = self._mislead(seen) or self._disappoint(seen)
        if not left or given_up:
            if not self._seeds or drawn >= (1 if given_up else self._random_first):
                late = self._next_late(seen, drawn)
                return self._own.propose(seen, rng) if late is None else late
            left = []
        seeded = len(self._seeds) - len(left) + 1
        if left and MOST_SEEDED[1] * seeded <= MOST_SEEDED[0] * (len(seen) + 1):
            return left[0]
        untried = np.setdiff1d(np.arange(self._own.size), [*seen, *left])
        if not untried.size:
            return left[0] if left else None
        return int(rng.choice(untried))

    def _next_late(self, seen: Mapping[int, float | None], drawn: int) -> int | None:
        """The next one that other kinds of devices suggest; None where it is not their turn."""
        left = [index for index in self._late if index not in seen]
        if not left or drawn < self._random_first or next(reversed(seen)) in self._late:
            return None
        seeded = len(seen) - drawn - len([i for i in self._first if i in seen]) + 1
        if MOST_SEEDED[1] * seeded > MOST_SEEDED[0] * (len(seen) + 1):
            return None
        late = others = math.inf
        for index, time in seen.items():
            if time is None:
                continue
            if index not in self._late:
                others = min(others, time)
            elif time > CLEARLY * min(late, others):
                return None
            else:
                late = min(late, time)
        begun = any(seen.get(index) is not None for index in self._late)
        return None if begun and not late < others else left[0]

    def _mislead(self, seen: Mapping[int, float | None]) -> bool:
        """Whether something that was not suggested is as fast as all that was."""
        known = set(self._seeds)
        done = {i: t for i, t in seen.items() if t is not None and i not in self._first}
        seeds = [time for index, time in done.items() if index in known]
        others = [time for index, time in done.items() if index not in known]
        return bool(seeds and others) and not min(seeds) < min(others)

    def _disappoint(self, seen: Mapping[int, float | None]) -> bool:
        """Whether a seed was clearly slower than the best that was tried before it."""
        known, best = set(self._seeds), math.inf
        for index, time in seen.items():
            if time is None or index in self._first:
                continue
            if index in known and best < math.inf and time > CLEARLY * best:
                return True
            best = min(best, time)
        return False
