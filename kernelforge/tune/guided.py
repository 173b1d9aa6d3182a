"""A search that begins with what other devices know of a space, and does not rely on it.

The guide takes turns with a search that knows nothing of it, and has to earn them. All rules are
functions of what was tried alone:

* The search is at first the unguided one, trial by trial. The guide begins once the times that
  were measured go with those of the other devices: as logarithms, where a few slow ones weigh
  most, and in their order, where all weigh the same.
* However well other devices agree with each other, that says nothing of this one: only what was
  measured here does.
* What the guide brings must be faster than everything else, by half of what was promised or more.
* Of any first n trials at most 70 % are the guide's.
* Once anything else is as fast as all that the guide brought, it is asked no more; nor once a few
  of its turns in succession brought nothing faster. What it knows is exhausted then, and the best
  of this device may lie elsewhere.

A guide that never begins costs nothing; one that is given up cost what it tried, which is a single
probe mostly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.acquisition import RANDOM_FIRST, Proposer
from kernelforge.tune.encoded import Encoded, Floats
from kernelforge.tune.experience import Experience
from kernelforge.tune.seeded import MOST_SEEDED
from kernelforge.tune.transfer import Transfer

ALIKE = math.sqrt(0.5)
"""Correlation of times here and elsewhere from which the guide begins: other devices tell half of
how times vary here. Where they tell less, their best is mostly no better than what the search would
find by itself, and costs a trial. It has to be a standard error above: the fewer measurements, the
more alike they must be."""
FEWEST = 6
"""Measurements that tell likeness; among fewer, chance makes nearly any of it."""
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
        random_first: measurements before the guide may begin; `FEWEST` at the least.
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
            return self._guess(seen, untried, rng)
        return self._own.propose(seen, rng)

    def begin(self, seen: Mapping[int, float | None]) -> int | None:
        """Number of the trial, from 0, at which the guide begins; None if it did not yet."""
        times = np.array([math.inf if t is None else t for t in seen.values()])
        works = np.flatnonzero(np.isfinite(times) & (times > 0))
        fewest = max(self._random_first, FEWEST)
        if len(works) < fewest:
            return None
        here, there = np.log(times[works]), self._mean[np.array(list(seen))[works]]
        counts = np.arange(1.0, len(works) + 1)
        here, there = here - here[0], there - there[0]  # the sums below stay small
        both = np.cumsum(here * there) - np.cumsum(here) * np.cumsum(there) / counts
        spread = np.sqrt(_spread(here, counts) * _spread(there, counts))
        alike = np.divide(both, spread, out=np.zeros(len(works)), where=spread > 1e-12)
        likely = _are_alike(alike, counts)
        likely[: fewest - 1] = False
        for last in np.flatnonzero(likely):
            ranks = _ranks(here[: last + 1]), _ranks(there[: last + 1])
            if _are_alike(np.asarray(_correlation(*ranks)), counts[last]):
                return int(works[last]) + 1
        return None

    def _is_guided(self, number: int, begin: int) -> bool:
        """Whether the trial of a number, from 0, is the guide's."""
        if number <= begin:
            return number == begin
        most, of = MOST_SEEDED
        return (number + 1) * most // of > number * most // of

    def _guess(
        self, seen: Mapping[int, float | None], untried: NDArray[np.bool_], rng: np.random.Generator
    ) -> int:
        members = self._experience.members
        if not any(index in seen for index in members):
            return members[0]
        times = {index: time for index, time in seen.items() if time is not None}
        return self._transfer.propose(times, untried, rng)

    def given_up(self, seen: Mapping[int, float | None], begin: int) -> bool:
        """Whether, after its probe, the guide had been caught up with or had nothing to add."""
        guided: _Best = (math.inf, -1)
        others: _Best = (math.inf, -1)
        brought, in_vain = False, 0
        for number, (index, time) in enumerate(seen.items()):
            one = (math.inf if time is None else time, index)
            if self._is_guided(number, begin):
                in_vain = 0 if one < min(guided, others) else in_vain + 1
                guided, brought = min(guided, one), True
            else:
                others = min(others, one)
            if brought and not self._leads(guided, others):
                return True
            if in_vain >= IN_VAIN:
                return True
        return False

    def _leads(self, guided: _Best, others: _Best) -> bool:
        if not guided[0] < others[0]:
            return False
        if math.isinf(others[0]) or guided[0] <= 0:
            return True
        promised = float(self._mean[others[1]] - self._mean[guided[1]])
        return math.log(others[0] / guided[0]) >= KEPT * promised


def _spread(values: Floats, counts: Floats) -> Floats:
    """[n] sum of the squared distances from the mean, of the first 1..n values."""
    return np.maximum(np.cumsum(values**2) - np.cumsum(values) ** 2 / counts, 0.0)


def _ranks(values: Floats) -> Floats:
    """[n] place of each in their order, less the mean place; equal ones share theirs."""
    _, which, alike = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(alike) - 0.5 * alike)[which] - 0.5 * len(values), np.float64)


def _correlation(a: Floats, b: Floats) -> float:
    """Of two centred rows; 0 where one of them is all the same."""
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 1e-12 else 0.0


def _are_alike(found: Floats, counts: Floats) -> NDArray[np.bool_]:
    """Which correlations of so many pairs each are a standard error above `ALIKE`.

    By Fisher's transformation: its standard error is one over the root of three less than n.
    """
    error = 1.0 / np.sqrt(np.maximum(counts - 3.0, 1e-12))
    found = np.arctanh(np.clip(found, -0.999999, 0.999999))
    return np.asarray(found - error >= math.atanh(ALIKE), np.bool_)
