"""Predicts a device's times from those on other devices, and what these cannot tell from its own.

The logarithm of the time is taken as a sum: of what other devices took, each with a weight, and of
a Gaussian process for the rest. The weights begin where other devices are mostly right, and follow
what is measured; where it contradicts them, they come to nothing and the process is alone. Source:
C. Rasmussen, C. Williams, Gaussian Processes for Machine Learning, 2006, section 2.7 (a process
with explicit basis functions, whose weights have a prior).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.acquisition import DRAWN_FROM, _log_improvement
from kernelforge.tune.encoded import Encoded, Floats, Ints
from kernelforge.tune.gaussian_process import GaussianProcess

EXPECTED, SPREAD = 0.7, 0.5
"""Weights of all devices together before anything is measured, and how far off that may be."""
NOISE = 0.5
"""What other devices leave unexplained, as a logarithm: the less, the faster weights follow."""


class Transfer:
    """Proposes configurations by what other devices know and what was measured here.

    Args:
        encoded: the set.
        logs: [devices, configurations] as of `Experience`.
    """

    def __init__(self, encoded: Encoded, logs: Floats) -> None:
        self._logs = logs
        self._processes = [GaussianProcess(encoded, draws) for draws in (False, True)]

    def copy(self) -> Transfer:
        """One that may be asked without this one learning from it."""
        other = copy.copy(self)
        other._processes = [process.copy() for process in self._processes]
        return other

    def propose(
        self, times: Mapping[int, float], untried: NDArray[np.bool_], rng: np.random.Generator
    ) -> int:
        """The index to try next, by expected improvement.

        Args:
            times: index -> time of what was measured, oldest first; inf for a failure. At least
                one is finite.
            untried: [configurations] what may be proposed; not all False.
            rng: source of randomness.
        """
        worst = max(t for t in times.values() if math.isfinite(t))
        history = np.fromiter(times, np.int64, len(times))
        logs = np.log([t if math.isfinite(t) else worst for t in times.values()])
        known = self.weights(history, logs) @ self._logs
        rest = logs - known[history]
        level, scale = float(rest.mean()), max(float(logs.std()), 1e-12)
        gains = np.full(len(untried), -np.inf)
        for process in self._processes if len(history) >= DRAWN_FROM else self._processes[:1]:
            points, mean, deviation = process.predict(history, (rest - level) / scale, rng)
            mean = mean + known[points] / scale
            best = float((logs.min() - level) / scale)
            gains[points] = np.logaddexp(gains[points], _log_improvement(mean, deviation, best))
        gains[~untried] = -np.inf
        return int(np.argmax(gains))

    def weights(self, history: Ints, logs: Floats) -> Floats:
        """[devices] how much of each one's logarithms is found in what was measured; none below 0.

        Args:
            history: [m] what was measured.
            logs: [m] logarithms of the times.
        """
        count = len(self._logs)
        others = self._logs[:, history].T
        others = others - others.mean(axis=0)
        before = np.full(count, EXPECTED / count)
        matrix = others.T @ others + NOISE**2 / (SPREAD**2 / count) * np.eye(count)
        missed = logs - logs.mean() - others @ before
        found = before + np.linalg.solve(matrix, others.T @ missed)
        return np.asarray(np.maximum(found, 0.0), np.float64)
