"""A bench whose device is a formula: every part of measuring but the device itself is the real one.

A variant has a true time, known to the test. What a sample shows of it is that time, as slow as the
device is at that moment, with the noise of one sample, and now and then a neighbour who takes the
machine for a while.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge.family import KernelFamily
from kernelforge.measure.bench import Bench
from kernelforge.measure.programs import Programs
from kernelforge.measure.timed_problem import Effort
from kernelforge.measure.verify import Verification
from kernelforge.measure.watch import Watch
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32


@dataclass(frozen=True)
class Noise:
    """How a simulated device differs from its truth.

    Attributes:
        sigma: of the logarithm of a sample.
        drift: how much slower the device is at most, as it warms up.
        warm_s: seconds of device time in which it has done most of that.
        outliers: share of samples that a neighbour disturbs.
        least: how many times as long those take at least,
        worst: and at most.
    """

    sigma: float = 0.02
    drift: float = 0.06
    warm_s: float = 0.5
    outliers: float = 0.03
    least: float = 1.1
    worst: float = 3.0


class SimulatedBench(Bench):
    """A bench of a device that does not exist.

    Attributes:
        now_s: device time spent so far.
        slowdowns: how slow the device was at each sample in turns.
    """

    def __init__(
        self, family: KernelFamily, problem: Problem, noise: Noise, seed: int, spread: float = 0.5
    ) -> None:
        self.family, self.precision, self.problem = family, F32, problem
        self.effort, self.info, self.watch = Effort(), GENERIC, Watch()
        self._rng = np.random.default_rng(seed)
        self._programs = Programs(self.info, family, F32, problem)
        self.noise, self._seed, self._spread = noise, seed, spread
        self.now_s = 0.0
        self.slowdowns: list[float] = []

    def true_ns(self, variant: str) -> float:
        """What the variant takes on the cold device without noise."""
        digest = hashlib.sha256(f"{self._seed} {variant}".encode()).digest()
        return 50e3 * (1.0 + self._spread * int.from_bytes(digest[:4], "little") / 2**32)

    def slowdown(self) -> float:
        """How many times as long as at first the device takes now."""
        return 1.0 + self.noise.drift * (1.0 - float(np.exp(-self.now_s / self.noise.warm_s)))

    def draw(self, module: ShaderModule, dispatches: int) -> float:
        """One sample, ns per dispatch."""
        self.slowdowns.append(self.slowdown())
        ns = self.true_ns(module.name) * self.slowdowns[-1]
        ns *= float(np.exp(self._rng.normal(0.0, self.noise.sigma)))
        if self._rng.random() < self.noise.outliers:
            ns *= self._rng.uniform(self.noise.least, self.noise.worst)
        self.now_s += ns * dispatches / 1e9
        return ns

    def check(
        self, module: ShaderModule, seed: int | None = None, problem: Problem | None = None
    ) -> Verification:
        """Everything is right."""
        return Verification(True, 0.0, 1.0, "", seed or 0)

    def is_cold(self, module: ShaderModule) -> bool:
        return False

    def repetitions(self, module: ShaderModule, once_ns: float, longest_ns: float) -> int:
        return max(1, min(round(self.effort.sample_ns / once_ns), self.effort.most_dispatches))

    def timer(self, module: ShaderModule, dispatches: int) -> Any:
        return _Timer(self, module, dispatches)

    def close(self) -> None:
        """There is nothing to free."""


class _Timer:
    clock = "timestamp"

    def __init__(self, bench: SimulatedBench, module: ShaderModule, dispatches: int) -> None:
        self._bench, self._module, self.dispatches = bench, module, dispatches

    def sample(self) -> float:
        return self._bench.draw(self._module, self.dispatches)

    def close(self) -> None:
        """There is nothing to free."""
