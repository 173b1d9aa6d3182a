"""A search that begins with what other devices know of a space, and does not rely on it.

The guide takes turns with a search that knows nothing of it, and has to earn them. All rules are
functions of what was tried alone:

* Where most of the other devices agree with each other, the guide begins at once: configurations of
  the portfolio, then what a model expects that learns how far the other devices hold.
* Where they do not, or where there is a single one, the search is at first the unguided one, trial
  by trial. The guide begins once the times that were measured go with those of the other devices.
  What it then brings must be faster than everything else, by half of what was promised or more.
* Of any first n trials at most 70 % are the guide's.
* Once anything else is as fast as all that the guide brought, it is asked no more; nor once a few
  of its turns in succession brought nothing faster. What it knows is exhausted then, and the best
  of this device may lie elsewhere.

A guide that never begins costs nothing; one that is given up cost what it tried, which is a probe
or two mostly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.acquisition import RANDOM_FIRST, Proposer
from kernelforge.tune.encoded import Encoded
from kernelforge.tune.experience import PROBES, Experience
from kernelforge.tune.seeded import MOST_SEEDED
from kernelforge.tune.transfer import Transfer

ALIKE = 0.5
"""Correlation of the logarithms of times here and elsewhere from which the guide begins: what is
measured has to be a standard error above, so the fewer it is, the more alike it must be."""
IN_VAIN = 8
"""Turns in succession after which a guide that brings nothing faster has said what it knows."""
KEPT = 0.5
"""Share of a promised advantage that has to be there."""

_Best = tuple[float, int]
"""Time and index of the fastest of some."""


class GuidedProposer:
    """A proposer that is guided by other devices as long as that helps.

    Args:
        own: proposes everything else.
        encoded: the set.
        experience: what other devices know about it.
        random_first: random draws before `own` is asked, while the guide is followed.
    """

    def __init__(
        self,
        own: Proposer,
        encoded: Encoded,
        experience: Experience,
        random_first: int = RANDOM_FIRST,
    ) -> None:
        self._own, self._experience, self._random_first = own, experience, random_first
        self._transfer = Transfer(encoded, experience.logs)
        self._mean = experience.mean
        self._probes = min(PROBES, len(experience.logs), len(experience.members))

    def copy(self) -> GuidedProposer:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._own, other._transfer = self._own.copy(), self._transfer.copy()
        return other

    def propose(self, seen: Mapping[int, float | None], rng: np.random.Generator) -> int | None:
        """The index to try next; as `Proposer.propose`."""
        begin = self.begin(seen)
        if begin is None or self.given_up(seen, begin):
            return self._own.propose(seen, rng)
        untried = np.ones(self._own.size, np.bool_)
        untried[np.fromiter(seen, np.int64, len(seen))] = False
        if not untried.any():
            return None
        if self._is_guided(len(seen), begin):
            index = self._guess(seen, untried, rng)
            if index is not None:
                return index
        drawn = sum(not self._is_guided(number, begin) for number in range(len(seen)))
        if drawn < self._random_first:
            return int(rng.choice(np.flatnonzero(untried)))
        return self._own.propose(seen, rng)

    def begin(self, seen: Mapping[int, float | None]) -> int | None:
        """Number of the trial, from 0, at which the guide begins; None if it did not yet."""
        if self._experience.trusted:
            return 0
        times = np.array([math.inf if t is None else t for t in seen.values()])
        works = np.flatnonzero(np.isfinite(times) & (times > 0))
        if len(works) < self._random_first:
            return None
        here, there = np.log(times[works]), self._mean[np.array(list(seen))[works]]
        counts = np.arange(1.0, len(works) + 1)
        here, there = here - here[0], there - there[0]  # the sums below stay small
        both = np.cumsum(here * there) - np.cumsum(here) * np.cumsum(there) / counts
        spread = np.sqrt(_spread(here, counts) * _spread(there, counts))
        alike = np.divide(both, spread, out=np.zeros(len(works)), where=spread > 1e-12)
        # Fisher's transformation: its standard error is one over the root of three less than n.
        error = 1.0 / np.sqrt(np.maximum(counts - 3.0, 1e-12))
        enough = np.arctanh(np.clip(alike, -0.999999, 0.999999)) - error >= math.atanh(ALIKE)
        enough[: self._random_first - 1] = False
        return int(works[enough.argmax()]) + 1 if enough.any() else None

    def _is_guided(self, number: int, begin: int) -> bool:
        """Whether the trial of a number, from 0, is the guide's."""
        if begin and number <= begin + 2 * (self._probes - 1):
            return number >= begin and (number - begin) % 2 == 0
        most, of = MOST_SEEDED
        return (number + 1) * most // of > number * most // of

    def _guess(
        self, seen: Mapping[int, float | None], untried: NDArray[np.bool_], rng: np.random.Generator
    ) -> int | None:
        members = self._experience.members
        left = [index for index in members if index not in seen]
        if len(members) - len(left) < self._probes:
            return left[0]
        times = {index: time for index, time in seen.items() if time is not None}
        if sum(map(math.isfinite, times.values())) < 2:
            return left[0] if left else None
        return self._transfer.propose(times, untried, rng)

    def given_up(self, seen: Mapping[int, float | None], begin: int) -> bool:
        """Whether, after the probes, the guide had been caught up with or had nothing to add."""
        guided: _Best = (math.inf, -1)
        others: _Best = (math.inf, -1)
        brought = in_vain = 0
        for number, (index, time) in enumerate(seen.items()):
            one = (math.inf if time is None else time, index)
            if self._is_guided(number, begin):
                in_vain = 0 if one < min(guided, others) else in_vain + 1
                guided, brought = min(guided, one), brought + 1
            else:
                others = min(others, one)
            if brought >= self._probes and not self._leads(guided, others):
                return True
            if in_vain >= IN_VAIN:
                return True
        return False

    def _leads(self, guided: _Best, others: _Best) -> bool:
        if not guided[0] < others[0]:
            return False
        if self._experience.trusted or math.isinf(others[0]) or guided[0] <= 0:
            return True
        promised = float(self._mean[others[1]] - self._mean[guided[1]])
        return math.log(others[0] / guided[0]) >= KEPT * promised


def _spread(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] sum of the squared distances from the mean, of the first 1..n values."""
    return np.maximum(np.cumsum(values**2) - np.cumsum(values) ** 2 / counts, 0.0)
