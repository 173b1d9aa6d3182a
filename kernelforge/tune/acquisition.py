"""Which configuration to try next, chosen from an enumerated set: pure NumPy, no Optuna, no device.

All ways but "random" ask a model of the times seen so far about configurations that exist and were
not tried:

gp     Gaussian process on log times, expected improvement. Source: D. Jones et al., Efficient
       Global Optimization of Expensive Black-Box Functions, 1998, equation 15.
mixed  the mean of the improvements that two such processes expect: one of the most probable length
       scales, one of scales drawn from their posterior, which errs elsewhere. Source: J. Snoek et
       al., Practical Bayesian Optimization of Machine Learning Algorithms, 2012, section 3.2.
       Unlike "gp" it expects long scales, begins with configurations that lie far apart, and sees
       halfway between log times and their ranks: where times span a factor of a hundred, logs
       are all about what is bad; ranks tell the good ones apart, but not how far they lie apart.
tpe    ratio of two densities, of the best fifth and of the rest, per parameter and smoothed over
       ordinal neighbours. Source: J. Bergstra et al., Algorithms for Hyper-Parameter Optimization,
       2011, section 4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.encoded import Encoded, Floats, Ints
from kernelforge.tune.gaussian_process import GaussianProcess

Strategy = Literal["mixed", "gp", "tpe", "random"]

RANDOM_FIRST = 4
RANDOM_SHARE = 0.1
DRAWN_FROM = 12
"""Measurements from which scales drawn from their posterior are listened to; before, they are
little more than drawn from nothing."""
SPREAD_OVER = 64
"""Random configurations of which the one farthest from all others tried is taken."""
_GP_HISTORY = 250
"""Beyond this many measurements the process sees the best ones and a random rest."""


class Proposer:
    """Proposes indices into an enumerated set of configurations, each at most once.

    Args:
        configs: the valid set, all with the same parameter names; or the same already encoded.
        first: indices to propose before anything else, in order (the default, warm starts).
        strategy: see the module docstring; all fall back to random while little is known.
        random_first: number of random proposals after `first`.
        random_share: share of later proposals that stay random, against a misled model.
    """

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]] | Encoded,
        first: Sequence[int] = (),
        strategy: Strategy = "mixed",
        random_first: int = RANDOM_FIRST,
        random_share: float = RANDOM_SHARE,
    ) -> None:
        self._encoded = configs if isinstance(configs, Encoded) else Encoded(configs)
        self.size = self._encoded.size
        self._first = list(dict.fromkeys(first))
        self._strategy = strategy
        self._random_first, self._random_share = random_first, random_share
        drawn = (False, True) if strategy == "mixed" else (False,)
        expects = strategy == "mixed"
        self._processes = [GaussianProcess(self._encoded, draws, expects) for draws in drawn]

    def copy(self) -> Proposer:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._processes = [process.copy() for process in self._processes]
        return other

    def propose(self, seen: Mapping[int, float | None], rng: np.random.Generator) -> int | None:
        """The index to try next.

        Args:
            seen: index -> time for everything tried; inf for a failure, None while running.
            rng: source of randomness.

        Returns:
            An index that is not in `seen`; None when nothing is left.
        """
        untried = np.ones(self.size, np.bool_)
        untried[np.fromiter(seen, np.int64, len(seen))] = False
        unseen = np.flatnonzero(untried)
        if not unseen.size:
            return None
        for index in self._first:
            if index not in seen:
                return index
        times = {i: t for i, t in seen.items() if t is not None}
        finite = [t for t in times.values() if math.isfinite(t) and t > 0]
        early = len(seen) < len(self._first) + self._random_first
        if early and seen and self._strategy == "mixed":
            return self._far_off(np.fromiter(seen, np.int64, len(seen)), unseen, rng)
        if early or len(finite) < 3 or self._strategy == "random":
            return int(rng.choice(unseen))
        if rng.random() < self._random_share:
            return int(rng.choice(unseen))
        worst = max(finite)
        history = np.fromiter(times, np.int64, len(times))
        logs = np.log([t if math.isfinite(t) and t > 0 else worst for t in times.values()])
        if float(np.ptp(logs)) < 1e-9 or not self._encoded.counts:
            return int(rng.choice(unseen))
        if self._strategy == "tpe":
            return self._by_density(history, logs, unseen, rng)
        return self._by_process(history, logs, untried, rng)

    def _far_off(self, tried: Ints, unseen: Ints, rng: np.random.Generator) -> int:
        """Far from everything tried, whether it has ended or not.

        Source: D. Mitchell, Spectrally Optimal Sampling for Distribution Ray Tracing, 1991: the
        best candidate of a few random ones.
        """
        some = rng.choice(unseen, min(len(unseen), SPREAD_OVER), replace=False)
        nearest = self._encoded.distances(some, tried).sum(axis=0).min(axis=1)
        return int(some[np.argmax(nearest)])

    def _by_density(
        self, history: Ints, logs: Floats, unseen: Ints, rng: np.random.Generator
    ) -> int:
        order = np.argsort(logs, kind="stable")
        good = max(2, math.ceil(0.2 * len(order)))
        codes = self._encoded.codes
        score = np.zeros(len(unseen))
        for p, count in enumerate(self._encoded.counts):
            near = self._smoothing(p, count)
            above = near @ np.bincount(codes[history[order[:good]], p], minlength=count) + 1 / count
            below = near @ np.bincount(codes[history[order[good:]], p], minlength=count) + 1 / count
            ratio = np.log(above / above.sum()) - np.log(below / below.sum())
            score += ratio[codes[unseen, p]]
        best = np.flatnonzero(score >= score.max() - 1e-9)
        return int(unseen[rng.choice(best)])

    def _smoothing(self, p: int, count: int) -> Floats:
        if not self._encoded.ordinal[p]:
            return np.eye(count)
        apart = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :])
        return np.where(apart == 0, 1.0, np.where(apart == 1, 0.2, 0.0))

    def _by_process(
        self, history: Ints, logs: Floats, untried: NDArray[np.bool_], rng: np.random.Generator
    ) -> int:
        if len(history) > _GP_HISTORY:
            order = np.argsort(logs, kind="stable")
            rest = rng.choice(order[_GP_HISTORY // 2 :], _GP_HISTORY // 2, replace=False)
            keep = np.concatenate([order[: _GP_HISTORY // 2], rest])
            history, logs = history[keep], logs[keep]
        target = _standard(logs)
        if self._strategy == "mixed":
            target = _standard(target + _normal_scores(logs))
        asked = self._processes if len(history) >= DRAWN_FROM else self._processes[:1]
        gains = np.full(self.size, -np.inf)
        for process in asked:
            points, mean, deviation = process.predict(history, target, rng)
            gain = _log_improvement(mean, deviation, float(target.min()))
            gains[points] = np.logaddexp(gains[points], gain)
        gains[~untried] = -np.inf
        return int(np.argmax(gains))


def _standard(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-12), np.float64)


def _normal_scores(values: Floats) -> Floats:
    """What a normal distribution has at the ranks of the values; of mean 0, nearly of deviation 1.

    Source: D. Salinas et al., A Quantile-based Approach for Hyperparameter Transfer Learning, 2020,
    section 3: the same under whatever keeps the order.
    """
    normal, count = NormalDist(), len(values)
    scores = np.array([normal.inv_cdf((rank + 0.5) / count) for rank in range(count)])
    # Equal ones, such as all that failed, share what their ranks have.
    _, place, alike = np.unique(values, return_inverse=True, return_counts=True)
    shared = np.bincount(np.sort(place), weights=scores) / alike
    return np.asarray(shared[place], np.float64)


def _log_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Logarithm of the expected improvement: tells also those apart that promise next to none."""
    z = (best - mean) / deviation
    inside = np.interp(z, _GRID, _LOG_GAIN)
    squared = np.square(np.minimum(z, _GRID[0]))
    # Far below, z times the distribution and the density cancel all but this.
    below = -0.5 * squared - np.log(squared) - 0.5 * math.log(2.0 * math.pi)
    above = np.log(np.maximum(z, _GRID[-1]))
    outside = np.where(z < _GRID[0], below, above)
    return np.asarray(
        np.log(deviation) + np.where(np.abs(z) < _GRID[-1], inside, outside), np.float64
    )


_GRID = np.arange(-1000, 1001) / 100.0
_LOG_GAIN = np.array(
    [
        math.log(
            math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
            + 0.5 * z * math.erfc(-z / math.sqrt(2.0))
        )
        for z in _GRID.tolist()
    ]
)
"""Of the gain in units of the deviation, tabulated: a step of 0.01 is exact to 2e-5."""
