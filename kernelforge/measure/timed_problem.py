"""One problem on one device: its inputs, what verifies variants on them, and what times them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from kernelforge.family import KernelFamily
from kernelforge.measure.reduced import reduced_problem
from kernelforge.measure.rotation import Rotation
from kernelforge.measure.verify import Verification, Verifier
from kernelforge.measure.watch import Watch
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import Device

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Effort:
    """How long one variant is timed. Times in ns.

    Attributes:
        sample_ns: a sample repeats the dispatch until it lasts at least this long.
        longest_sample_ns: ... but no longer than this, unless one dispatch does.
        most_dispatches: ... and at most this many dispatches, each recorded.
        samples: at most this many; fewer once the median is known to 1 %.
        total_ns: stop sampling after this long.
        quick: samples after which a slow variant may be given up.
        setup_s: a variant whose first run takes longer is not wanted, however fast it is then:
            every start of a model would wait for the driver to compile it.
    """

    sample_ns: float = 2e6
    longest_sample_ns: float = 20e6
    most_dispatches: int = 256
    samples: int = 10
    total_ns: float = 100e6
    quick: int = 3
    setup_s: float = 5.0


class Timer:
    """A recorded plan that repeats one dispatch; each `sample` gives ns per dispatch."""

    def __init__(
        self, device: Device, dispatches: Sequence[Dispatch], name: str, watch: Watch | None = None
    ) -> None:
        self.dispatches, self._watch = len(dispatches), watch or Watch()
        self._plan = Plan(device, dispatches, timestamps="ends", name=name)
        self.clock: str = self._plan.clock

    def sample(self) -> float:
        """Runs the plan once; ns per dispatch."""
        self._watch.run(self._plan, TIMEOUT_S)
        return self._plan.elapsed_ns() / self.dispatches

    def close(self) -> None:
        """Releases the plan."""
        self._plan.close()


class TimedProblem:
    """Holds the inputs between variants.

    Owns device memory: close it, or use it as a context manager.

    Args:
        device: where to measure.
        family: what.
        precision: of the weights.
        problem: the dimensions that are timed. Verification uses a smaller problem of the same
            kind where this one is large.
        seed: of the timing inputs and of the sequence of verification seeds; None draws one.
        effort: how long each variant is timed.
        verify_on: the problem to verify on, where the choice described above is not wanted.

    Attributes:
        watch: how long runs may take, and who is told where one does not end.
    """

    def __init__(
        self,
        device: Device,
        family: KernelFamily,
        precision: DType,
        problem: Problem,
        seed: int | None = None,
        effort: Effort | None = None,
        verify_on: Problem | None = None,
    ) -> None:
        self.device, self.family, self.precision, self.problem = device, family, precision, problem
        self.effort = effort or Effort()
        self._rng = np.random.default_rng(seed)
        self._constants = dict(family.constants(problem))
        self.reduced = verify_on or reduced_problem(family, precision, problem, device.info)
        self._verifiers: dict[Problem, Verifier] = {}
        self._rotation = Rotation(device, family, precision, problem, self.next_seed())
        self.info, self.watch = device.info, Watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the device memory."""
        for verifier in self._verifiers.values():
            verifier.close()
        self._verifiers.clear()
        self._rotation.close()

    def next_seed(self) -> int:
        """A seed that was not used before in this bench."""
        return int(self._rng.integers(2**31))

    def check(
        self, module: ShaderModule, seed: int | None = None, problem: Problem | None = None
    ) -> Verification:
        """Verifies a module on fresh inputs.

        Args:
            module: a variant of this family.
            seed: of the inputs; a new one if None.
            problem: what to verify on; the bench's problem, or a smaller one of the same kind where
                that is large, if None.

        Raises:
            DeviceLostError: the device did not answer in time.
            MeasureError: the family's declarations contradict each other.
        """
        at = problem or self.reduced or self.problem
        if at not in self._verifiers:
            self._verifiers[at] = Verifier(self.device, self.family, self.precision, at, self.watch)
        return self._verifiers[at].verify(module, self.next_seed() if seed is None else seed)

    def repetitions(self, module: ShaderModule, once_ns: float, longest_ns: float) -> int:
        """How many dispatches make a good sample, if one takes `once_ns`."""
        once = max(once_ns, 1.0)
        fill = max(math.ceil(self.effort.sample_ns / once), self._rotation.copies(module.signature))
        fit = max(1, math.floor(longest_ns / once))
        return max(1, min(fill, fit, self.effort.most_dispatches))

    def is_cold(self, module: ShaderModule) -> bool:
        """True where the timing inputs of this module come from memory, not from a cache."""
        return self._rotation.cold(module.signature)

    def timer(self, module: ShaderModule, dispatches: int) -> Timer:
        """A timer that repeats `module` on the timing inputs; close it after use."""
        signature = module.signature
        calls = [
            Dispatch(module, self.problem, self._rotation.buffers(signature, i), self._constants)
            for i in range(dispatches)
        ]
        return Timer(self.device, calls, module.name, self.watch)
