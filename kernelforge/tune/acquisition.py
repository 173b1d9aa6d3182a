"""Which configuration to try next, chosen from an enumerated set: pure NumPy, no Optuna, no device.

Two models of the times seen so far, both asked about configurations that exist and were not tried:

gp   Gaussian process with a Laplace kernel on log times, expected improvement. Source: D. Jones et
     al., Efficient Global Optimization of Expensive Black-Box Functions, 1998, equation 15. One
     length scale per parameter, by maximum likelihood on a small grid: parameters that do not
     matter get a long one.
tpe  ratio of two densities, of the best fifth and of the rest, per parameter and smoothed over
     ordinal neighbours. Source: J. Bergstra et al., Algorithms for Hyper-Parameter Optimization,
     2011, section 4. Five times cheaper, and it errs on other spaces than the first.

"mixed" asks the second every third time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["mixed", "gp", "tpe", "random"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RANDOM_FIRST = 8
RANDOM_SHARE = 0.1
_SCALES = (0.15, 0.4, 1.0, 2.5, 8.0)
_NUGGETS = (1e-3, 1e-2, 5e-2)
_CANDIDATES = 4000
_GP_HISTORY = 250
"""Beyond this many measurements the process sees the best ones and a random rest."""


class Encoded:
    """A set of configurations as numbers.

    Attributes:
        codes: [n, p] index of each value among the parameter's sorted values.
        points: [n, c] columns in 0..1; a number is one column (log scale where all are positive
            powers of two apart), a word is one column per value, half a unit high, so that two
            different words are one unit apart.
        column_param: [c] which parameter a column belongs to.
        counts: [p] number of values of each parameter.
        ordinal: [p] whether the values have an order.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]]) -> None:
        names = [n for n in configs[0] if len({_key(c[n]) for c in configs}) > 1]
        self.counts: list[int] = []
        self.ordinal: list[bool] = []
        codes, columns, owners = [], [], []
        for p, name in enumerate(names):
            raw = [config[name] for config in configs]
            numeric = all(isinstance(v, int | float) for v in raw)
            values = sorted({_key(v): v for v in raw}.values(), key=None if numeric else str)
            index = {_key(v): i for i, v in enumerate(values)}
            code = np.array([index[_key(v)] for v in raw], np.int64)
            codes.append(code)
            self.counts.append(len(values))
            self.ordinal.append(numeric)
            if numeric:
                columns.append(_scaled([float(v) for v in values])[code])
                owners.append(p)
            else:
                for i in range(len(values)):
                    columns.append(0.5 * (code == i))
                    owners.append(p)
        size = len(configs)
        self.codes: Ints = np.stack(codes, 1) if codes else np.zeros((size, 0), np.int64)
        self.points: Floats = np.stack(columns, 1) if columns else np.zeros((size, 0))
        self.column_param: Ints = np.array(owners, np.int64)

    def distances(self, a: Ints, b: Ints) -> Floats:
        """[p, len(a), len(b)] distance per parameter between configurations a and b."""
        out = np.zeros((len(self.counts), len(a), len(b)))
        for column, owner in enumerate(self.column_param):
            x = self.points[:, column]
            out[owner] += np.abs(x[a][:, None] - x[b][None, :])
        return out

    def weighted(self, a: Ints, b: Ints, scales: Floats) -> Floats:
        """[len(a), len(b)] distance over all parameters, each divided by its scale.

        The sum of `distances`, without ever holding its parts: they are the cost of a proposal.
        """
        out = np.zeros((len(a), len(b)), np.float32)
        for column, owner in enumerate(self.column_param):
            x = (self.points[:, column] / scales[owner]).astype(np.float32)
            step = np.subtract.outer(x[a], x[b])
            out += np.abs(step, out=step)
        return out.astype(np.float64)


def _key(value: Any) -> tuple[str, Any]:
    kind = "n" if isinstance(value, int | float) else "s"
    return kind, value


def _scaled(values: Sequence[float]) -> Floats:
    array = np.asarray(values, np.float64)
    if array.min() > 0 and array.max() >= 4 * array.min():
        array = np.log2(array)
    elif array.min() == 0 and array.max() > 4:
        array = np.log2(1.0 + array)
    return np.asarray((array - array.min()) / max(float(np.ptp(array)), 1e-12), np.float64)


class Proposer:
    """Proposes indices into an enumerated set of configurations, each at most once.

    Args:
        configs: the valid set; all with the same parameter names.
        first: indices to propose before anything else, in order (the default, warm starts).
        strategy: see the module docstring; all fall back to random while little is known.
        random_first: number of random proposals after `first`.
        random_share: share of later proposals that stay random, against a misled model.
    """

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        first: Sequence[int] = (),
        strategy: Strategy = "mixed",
        random_first: int = RANDOM_FIRST,
        random_share: float = RANDOM_SHARE,
    ) -> None:
        self.size = len(configs)
        self._encoded = Encoded(configs)
        self._first = list(dict.fromkeys(first))
        self._strategy = strategy
        self._random_first, self._random_share = random_first, random_share
        self._scales: Floats = np.full(len(self._encoded.counts), 1.0)
        self._nugget = _NUGGETS[1]
        self._fitted_at = 0

    def copy(self) -> Proposer:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._scales = self._scales.copy()
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
        if early or len(finite) < 3 or self._strategy == "random":
            return int(rng.choice(unseen))
        if rng.random() < self._random_share:
            return int(rng.choice(unseen))
        worst = max(finite)
        history = np.fromiter(times, np.int64, len(times))
        logs = np.log([t if math.isfinite(t) and t > 0 else worst for t in times.values()])
        if float(np.ptp(logs)) < 1e-9 or not self._encoded.counts:
            return int(rng.choice(unseen))
        if self._strategy == "tpe" or (self._strategy == "mixed" and len(seen) % 3 == 0):
            return self._by_density(history, logs, unseen, rng)
        return self._by_process(history, logs, unseen, rng)

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
        self, history: Ints, logs: Floats, unseen: Ints, rng: np.random.Generator
    ) -> int:
        if len(history) > _GP_HISTORY:
            order = np.argsort(logs, kind="stable")
            rest = rng.choice(order[_GP_HISTORY // 2 :], _GP_HISTORY // 2, replace=False)
            keep = np.concatenate([order[: _GP_HISTORY // 2], rest])
            history, logs = history[keep], logs[keep]
        target = (logs - logs.mean()) / logs.std()
        among = self._encoded.distances(history, history)
        if len(history) >= 1.1 * self._fitted_at or len(history) < self._fitted_at:
            self._fit(among, target)
            self._fitted_at = len(history)
        candidates = self._candidates(history, logs, unseen, rng)
        factor, weights = self._solve(among, target)
        across = np.exp(-self._encoded.weighted(candidates, history, self._scales))
        mean = across @ weights
        half = np.linalg.inv(factor) @ across.T  # small, and its product is all that costs
        deviation = np.sqrt(np.maximum(1.0 - np.einsum("ij,ij->j", half, half), 1e-10))
        return int(candidates[int(np.argmax(_improvement(mean, deviation, target.min())))])

    def _candidates(
        self, history: Ints, logs: Floats, unseen: Ints, rng: np.random.Generator
    ) -> Ints:
        """All that is unseen, or a random part of it and what surrounds the best ones."""
        if len(unseen) <= _CANDIDATES:
            return unseen
        picked = rng.choice(unseen, _CANDIDATES, replace=False)
        codes = self._encoded.codes[unseen]
        near = [
            unseen[(codes != self._encoded.codes[best]).sum(axis=1, dtype=np.int16) <= 2]
            for best in history[np.argsort(logs)[:3]]
        ]
        around = np.concatenate(near)
        if len(around) > _CANDIDATES // 2:
            around = rng.choice(around, _CANDIDATES // 2, replace=False)
        return np.unique(np.concatenate([picked, around]))

    def _kernel(self, distances: Floats) -> Floats:
        return np.asarray(np.exp(-np.tensordot(1.0 / self._scales, distances, axes=1)), np.float64)

    def _solve(self, among: Floats, target: Floats) -> tuple[Floats, Floats]:
        matrix = self._kernel(among) + self._nugget * np.eye(len(target))
        factor: Floats = np.asarray(np.linalg.cholesky(matrix), np.float64)
        weights: Floats = np.linalg.solve(factor.T, np.linalg.solve(factor, target))
        return factor, weights

    def _likelihood(self, among: Floats, target: Floats) -> float:
        factor, weights = self._solve(among, target)
        return float(-0.5 * target @ weights - np.log(np.diag(factor)).sum())

    def _fit(self, among: Floats, target: Floats) -> None:
        """One sweep over the parameters, each to the best value of the grid."""
        for p in range(len(self._scales)):
            self._scales[p] = self._best(among, target, _SCALES, p)
        self._nugget = self._best(among, target, _NUGGETS, None)

    def _best(
        self, among: Floats, target: Floats, grid: Sequence[float], param: int | None
    ) -> float:
        scored = []
        for value in grid:
            if param is None:
                self._nugget = value
            else:
                self._scales[param] = value
            scored.append((self._likelihood(among, target), value))
        return max(scored)[1]


def _improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    z = (best - mean) / deviation
    cumulative = 0.5 * (1.0 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2.0)))
    density = np.exp(-0.5 * np.square(z)) / math.sqrt(2.0 * math.pi)
    return np.asarray(deviation * (z * cumulative + density), np.float64)
