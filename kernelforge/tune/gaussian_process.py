"""A Gaussian process over an enumerated set, made to be asked after every single measurement.

Source: C. Rasmussen, C. Williams, Gaussian Processes for Machine Learning, 2006: prediction is
algorithm 2.1, the likelihood equation 5.8. The kernel is Laplace's, one length scale per parameter:
parameters that do not matter get a long one. Mean and variance of the process are not guessed but
those of highest likelihood (generalised least squares).

Nearly everything asked is asked again after the next measurement, so it is kept: with scales
unchanged, one more measurement adds one row to the triangle of the history and one to that of all
configurations. Scales are looked for anew each time the history has grown by a quarter.

A handful of measurements are as likely under nearly any scales. What a process is told to expect of
them decides what it makes of these: with long scales, that a parameter does much the same whatever
the others are. Source: C. Hvarfner et al., Vanilla Bayesian Optimization Performs Great in High
Dimensions, 2024: a log-normal prior whose middle grows with the number of parameters, as distances
between configurations do.
"""

from __future__ import annotations

import copy
import math

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.encoded import Encoded, Floats, Ints

Singles = NDArray[np.float32]

SCALES = np.array([0.15, 0.4, 1.0, 2.5, 8.0])
NUGGETS = np.array([1e-3, 1e-2, 5e-2])
GROWTH = 1.25
SWEEPS = 2
EXPECTED = 0.6
"""Middle of the prior of a scale, per parameter of the space: two configurations at random, a third
to half of the way apart in each, are then correlated by about a half, however many there are."""
MOST_FITTED = 120
"""Measurements that the scales are found from; more would hardly move them."""
MOST_POINTS = 32_768
"""Configurations predicted at a time; of a larger set, a random part and what is near the best."""


class GaussianProcess:
    """Predicts log times, or anything else that is smooth over configurations.

    Args:
        encoded: the set.
        draws: take scales drawn from their posterior (a sweep of Gibbs sampling on the grid)
            instead of the most likely ones.
        expects: long scales, by a prior of deviation 1 about `EXPECTED`, before and beside what
            the measurements say. Without, all scales of the grid are as likely.
    """

    def __init__(self, encoded: Encoded, draws: bool = False, expects: bool = False) -> None:
        self._encoded, self._draws = encoded, draws
        count = len(encoded.apart)
        middle = EXPECTED * count if expects else 1.0
        self._scales: Floats = np.full(count, middle)
        self._prior: Floats = -0.5 * np.square(np.log(SCALES / max(middle, 1e-9))) * expects
        self._nugget = float(NUGGETS[1])
        self._fitted_at = 0
        self._history: Ints = np.zeros(0, np.int64)
        self._points: Ints = np.zeros(0, np.int64)
        self._hot: Singles = np.zeros((0, 0), np.float32)
        self._triangle: Floats = np.zeros((0, 0))
        self._rows: Singles = np.zeros((0, 0), np.float32)
        self._explained: Singles = np.zeros(0, np.float32)

    def copy(self) -> GaussianProcess:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._scales = self._scales.copy()
        # Without spare rows: its first new row goes elsewhere.
        other._rows = self._rows[: len(self._history)]
        return other

    def predict(
        self, history: Ints, target: Floats, rng: np.random.Generator
    ) -> tuple[Ints, Floats, Floats]:
        """What is to be expected of configurations.

        Args:
            history: [m] indices of those that were measured, oldest first.
            target: [m] what was measured.
            rng: for the order of a fit, and its draws.

        Returns:
            Indices of the configurations predicted (all, if there are not too many), their
            expected values and the standard deviations of these.
        """
        known = len(self._history)
        if len(history) >= GROWTH * self._fitted_at:
            self._fit(history, target, rng)
            self._rebuild(history, target, rng)
        elif not (0 < known <= len(history) and np.array_equal(history[:known], self._history)):
            self._rebuild(history, target, rng)
        else:
            for index in history[known:]:
                self._extend(int(index))
        count = len(history)
        solved = np.linalg.solve(self._triangle, np.stack([target, np.ones(count)], 1))
        level = float(solved[:, 0] @ solved[:, 1]) / float(solved[:, 1] @ solved[:, 1])
        rest = solved[:, 0] - level * solved[:, 1]
        spread = math.sqrt(float(rest @ rest) / count + 1e-12)
        mean = level + rest.astype(np.float32) @ self._rows[:count]
        unexplained = np.maximum(1.0 - self._explained, 1e-7)
        return self._points, mean.astype(np.float64), spread * np.sqrt(unexplained, dtype=float)

    def _fit(self, history: Ints, target: Floats, rng: np.random.Generator) -> None:
        """Sweeps over the parameters, each to a scale of the grid with the others as they are."""
        self._fitted_at = len(history)
        if len(history) > MOST_FITTED:
            order = np.argsort(target, kind="stable")
            half = MOST_FITTED // 2
            keep = np.concatenate([order[:half], rng.choice(order[half:], half, replace=False)])
            history, target = history[keep], target[keep]
        apart = self._encoded.distances(history, history)
        total = np.tensordot(1.0 / self._scales, apart, axes=1)
        for _ in range(SWEEPS):
            for p in rng.permutation(len(self._scales)):
                others = total - apart[p] / self._scales[p]
                totals = others + apart[p] / SCALES[:, None, None]
                nuggets = np.full(len(SCALES), self._nugget)
                chosen = self._pick(self._prior + _likelihoods(totals, nuggets, target), rng)
                self._scales[p], total = SCALES[chosen], totals[chosen]
            totals = np.broadcast_to(total, (len(NUGGETS), *total.shape))
            self._nugget = float(NUGGETS[self._pick(_likelihoods(totals, NUGGETS, target), rng)])

    def _pick(self, likelihoods: Floats, rng: np.random.Generator) -> int:
        if not self._draws:
            return int(likelihoods.argmax())
        chances = np.exp(likelihoods - likelihoods.max())
        return int(rng.choice(len(chances), p=chances / chances.sum()))

    def _rebuild(self, history: Ints, target: Floats, rng: np.random.Generator) -> None:
        count = len(history)
        self._choose_points(history, target, rng)
        self._history = history.copy()
        among = np.exp(
            -np.tensordot(1.0 / self._scales, self._encoded.distances(history, history), 1)
        )
        factor = np.linalg.cholesky(among + self._nugget * np.eye(count))
        self._triangle = np.asarray(factor, np.float64)
        self._rows = np.empty((max(16, int(GROWTH * count) + 1), len(self._points)), np.float32)
        across = self._kernel(history)
        np.matmul(np.linalg.inv(self._triangle).astype(np.float32), across, out=self._rows[:count])
        self._explained = np.einsum("ij,ij->j", self._rows[:count], self._rows[:count])

    def _choose_points(self, history: Ints, target: Floats, rng: np.random.Generator) -> None:
        size = self._encoded.size
        if size <= MOST_POINTS:
            if len(self._points):
                return
            self._points = np.arange(size)
        else:
            everything = np.arange(size)
            near = [
                everything[self._encoded.changes(everything, int(best)) <= 2][:MOST_POINTS]
                for best in history[np.argsort(target, kind="stable")[:3]]
            ]
            part = rng.choice(size, MOST_POINTS, replace=False)
            self._points = np.unique(np.concatenate([part, *near]))
        codes = self._encoded.codes[self._points]
        starts = np.cumsum([0, *self._encoded.counts])
        self._hot = np.zeros((starts[-1], len(self._points)), np.float32)
        for p, start in enumerate(starts[:-1]):
            self._hot[start + codes[:, p], np.arange(len(codes))] = 1.0

    def _extend(self, index: int) -> None:
        """Takes one more configuration into the history."""
        known, one = len(self._history), np.array([index])
        apart = self._encoded.distances(self._history, one)[:, :, 0]
        beside = np.exp(-(1.0 / self._scales) @ apart)
        across = np.linalg.solve(self._triangle, beside)
        corner = math.sqrt(max(1.0 + self._nugget - float(across @ across), 1e-8))
        triangle = np.zeros((known + 1, known + 1))
        triangle[:known, :known], triangle[known, :known] = self._triangle, across
        triangle[known, known] = corner
        row = (self._kernel(one)[0] - across.astype(np.float32) @ self._rows[:known]) / corner
        if known == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[known] = row
        self._explained = self._explained + np.square(self._rows[known])
        self._triangle = triangle
        self._history = np.append(self._history, index)

    def _kernel(self, indices: Ints) -> Singles:
        """[indices, points] of the kernel, by one product: a value's distances are all its own."""
        codes = self._encoded.codes[indices]
        parts = [
            table[:, codes[:, p]] / self._scales[p] for p, table in enumerate(self._encoded.apart)
        ]
        distances = np.concatenate(parts).T.astype(np.float32) @ self._hot
        return np.asarray(np.exp(-distances), np.float32)


def _likelihoods(distances: Floats, nuggets: Floats, target: Floats) -> Floats:
    """[g] log likelihood of each of g sets of scales, up to a constant.

    Args:
        distances: [g, m, m] scaled distances among the history.
        nuggets: [g] variance of the noise, relative to that of the process.
        target: [m] what was measured.
    """
    sets, count, _ = distances.shape
    # Two more rows, target and ones: the factor's last rows are what its triangle solves them to.
    matrix = np.zeros((sets, count + 2, count + 2))
    matrix[:, :count, :count] = np.exp(-distances)
    diagonal = np.arange(count)
    matrix[:, diagonal, diagonal] += nuggets[:, None]
    matrix[:, count, :count], matrix[:, count + 1, :count] = target, 1.0
    large = 2.0 * max(float(target @ target), float(count)) / float(nuggets.min()) + 1.0
    matrix[:, count, count] = matrix[:, count + 1, count + 1] = large
    factor = np.linalg.cholesky(matrix)
    solved, ones = factor[:, count, :count], factor[:, count + 1, :count]
    weight = np.square(ones).sum(1)
    level = (solved * ones).sum(1) / weight
    rest = np.maximum(np.square(solved).sum(1) - np.square(level) * weight, 1e-12 * count)
    spread = np.log(factor[:, diagonal, diagonal]).sum(1)
    return np.asarray(-0.5 * count * np.log(rest / count) - spread, np.float64)
