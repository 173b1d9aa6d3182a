"""Measuring variants: compile, verify, then time them through the plan that the engine also uses.

Nothing here raises for a bad variant: whatever goes wrong with one becomes the `Outcome` of its
`Measurement`, and the search goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from kernelforge.compile import compile_variant
from kernelforge.errors import MeasureError
from kernelforge.family import KernelFamily
from kernelforge.measure import side_by_side, statistics
from kernelforge.measure.measurement import LostError, Measurement, Outcome
from kernelforge.measure.programs import Programs, first_line
from kernelforge.measure.side_by_side import Turns
from kernelforge.measure.timed_problem import Effort, TimedProblem
from kernelforge.measure.verify import Verification
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import (
    DeviceError,
    DeviceLostError,
    OutOfMemoryError,
    PlanError,
    SpirvError,
)
from kernelforge_runtime.vk import Device

log = logging.getLogger(__name__)

CLEARLY_SLOWER = 1.3
"""A variant that is this many times slower than the best so far gets the least samples."""


class Bench(TimedProblem):
    """Measures variants of one family on one problem; programs that are equal are measured once."""

    isolated = False
    """A variant that loses the device takes this process's along."""

    @cached_property
    def _programs(self) -> Programs:
        return Programs(self.info, self.family, self.precision, self.problem)

    def measure(self, params: Mapping[str, Any], incumbent_ns: float | None = None) -> Measurement:
        """Compiles, verifies and times one variant.

        Args:
            params: the variant.
            incumbent_ns: time of the best variant so far; one that is three times slower is given
                up after a few samples.

        Returns:
            Its measurement, whatever became of it.
        """
        blank, module = self._programs.prepare(params)
        if module is None:
            return blank
        known = self._programs.known(blank, module)
        if known is not None:
            return known
        result = self.measure_module(blank, module, incumbent_ns)
        self._programs.keep(module, result)
        return result

    def recall(self, measured: Iterable[Measurement]) -> None:
        """See `Programs.recall`."""
        self._programs.recall(measured)

    def measure_again(self, params: Mapping[str, Any]) -> Measurement:
        """Times a variant anew, although it, or an equal program, was measured before."""
        module = compile_variant(self.family, self.precision, params)
        blank, _ = self._programs.prepare(params)
        return self.measure_module(blank, module)

    def check_everywhere(
        self, module: ShaderModule, params: Mapping[str, Any], seed: int
    ) -> Verification:
        """See `side_by_side.check_everywhere`."""
        return side_by_side.check_everywhere(self, module, params, seed)

    def time_in_turns(
        self,
        modules: Sequence[ShaderModule],
        fastest_ns: float,
        rounds: int,
        seconds: float,
        seed: int,
    ) -> tuple[dict[str, Turns], dict[str, LostError]]:
        """See `side_by_side.time_in_turns`; here nothing is lost without the device."""
        found = side_by_side.time_in_turns(self, modules, fastest_ns, rounds, seconds, seed)
        return found, {}

    def describe(self, params: Mapping[str, Any]) -> Measurement:
        """A measurement of this variant with nothing measured yet."""
        return self._programs.describe(params)

    def measure_module(
        self, blank: Measurement, module: ShaderModule, incumbent_ns: float | None = None
    ) -> Measurement:
        """Verifies and times what has been compiled.

        Args:
            blank: its measurement so far.
            module: the variant.
            incumbent_ns: as for `measure`.
        """
        self.watch.late = False
        try:
            found = self.check(module)
            blank = replace(
                blank,
                max_error=found.max_error,
                tolerance=found.tolerance,
                seed=found.seed,
                setup_s=round(found.run_s, 3),
            )
            if not found.ok:
                return replace(blank, outcome=Outcome.WRONG_RESULT, reason=found.reason)
            if found.run_s > self.effort.setup_s:
                reason = f"the first run took {found.run_s:.1f} s; at most {self.effort.setup_s:g}"
                return replace(blank, outcome=Outcome.REJECTED, reason=reason)
            return self._time(blank, module, incumbent_ns)
        except DeviceLostError as error:
            outcome = Outcome.TIMED_OUT if self.watch.late else Outcome.DEVICE_LOST
            return replace(blank, outcome=outcome, reason=first_line(error))
        except (OutOfMemoryError, MemoryError) as error:
            return replace(blank, outcome=Outcome.OUT_OF_MEMORY, reason=first_line(error))
        except SpirvError as error:
            return replace(blank, outcome=Outcome.COMPILE_FAILED, reason=first_line(error))
        except (PlanError, DeviceError) as error:
            return replace(blank, outcome=Outcome.REJECTED, reason=first_line(error))

    def _time(
        self, blank: Measurement, module: ShaderModule, incumbent_ns: float | None
    ) -> Measurement:
        effort, cold = self.effort, self.is_cold(module)
        probe = self.timer(module, 1)
        try:
            samples = [probe.sample()]
            while len(samples) < 3 and not _give_up(samples, incumbent_ns):
                samples.append(probe.sample())
            slow = statistics.hopeless(samples, incumbent_ns) and _give_up(samples, incumbent_ns)
        finally:
            probe.close()
        if slow:
            return _timed(blank, samples, 1, probe.clock, cold, "early stop")
        repeat = self.repetitions(module, min(samples), effort.longest_sample_ns)
        timer = self.timer(module, repeat)
        note = ""
        try:
            timer.sample()  # warm-up: caches, clocks, first touch
            samples, spent = [], 0.0
            while len(samples) < effort.samples:
                samples.append(timer.sample())
                spent += samples[-1] * timer.dispatches
                if len(samples) == effort.quick:
                    if statistics.hopeless(samples, incumbent_ns):
                        note = "early stop"
                    if statistics.hopeless(samples, incumbent_ns, CLEARLY_SLOWER):
                        break  # its exact time is of no interest
                if len(samples) >= effort.quick and spent > effort.total_ns:
                    break
                if statistics.enough(samples):
                    break
        finally:
            timer.close()
        return _timed(blank, samples, timer.dispatches, timer.clock, cold, note)


def _give_up(samples: Sequence[float], incumbent_ns: float | None) -> bool:
    """After single dispatches, whose time has start-up in it: at once only where it is plain."""
    if incumbent_ns is None:
        return False
    excess = min(samples) - statistics.EARLY_STOP_FACTOR * incumbent_ns
    if len(samples) == 1:
        return excess > 9 * incumbent_ns + 20e6
    return len(samples) >= 2 and excess > 200e3


def _timed(
    blank: Measurement,
    samples: Sequence[float],
    dispatches: int,
    clock: str,
    cold: bool,
    note: str,
) -> Measurement:
    return replace(
        blank,
        samples_ns=tuple(samples),
        median_ns=statistics.median(samples),
        spread_ns=statistics.spread(samples),
        dispatches=dispatches,
        clock=clock,
        cold=cold,
        note=note,
    )


def measure(
    device: Device,
    family: KernelFamily,
    precision: DType,
    params: Mapping[str, Any],
    problem: Problem,
    seed: int | None = None,
    effort: Effort | None = None,
) -> Measurement:
    """Measures one variant on one problem; for several of them keep a `Bench`.

    Raises:
        MeasureError: the problem cannot exist for this family.
    """
    if why := family.refuses(problem):
        raise MeasureError(f"{family.name} at {problem}: {why}")
    with Bench(device, family, precision, problem, seed, effort) as bench:
        return bench.measure(params)
