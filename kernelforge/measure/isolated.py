"""A bench whose variants run in another process: nothing that one of them does ends the search.

Rendering and compiling happen here, running happens in the worker of a `Supervisor`. Same answers
as `bench.Bench`; a variant that takes the worker along is one more outcome.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from kernelforge.errors import MeasureError
from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import ENDED, LOSSES, LostError, Measurement
from kernelforge.measure.programs import Programs
from kernelforge.measure.protocol import (
    family_to_json,
    module_to_json,
    turns_from_json,
    verification_from_json,
)
from kernelforge.measure.reduced import reduced_problem
from kernelforge.measure.side_by_side import Turns
from kernelforge.measure.supervisor import START_S, IdleLossError, Supervisor
from kernelforge.measure.timed_problem import Effort
from kernelforge.measure.verify import Verification
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import DeviceLostError

T = TypeVar("T")

log = logging.getLogger(__name__)

IDLE_LOSSES = 5
"""Workers in a row that may die before they begin with one and the same request."""


@dataclass(frozen=True)
class Patience:
    """How long a variant may keep its worker busy, and what is done after losses. Times in s.

    Attributes:
        factor: a trial may take this many times as long as the default variant's did,
        floor_s: but is always given this long, the driver's compiling included,
        ceiling_s: and never longer; what the default itself is given.
        in_a_row: after so many losses one after the other the device is probed.
        pauses_s: before each probe; when they are used up the search ends.
    """

    factor: float = 20.0
    floor_s: float = 15.0
    ceiling_s: float = 120.0
    in_a_row: int = 3
    pauses_s: tuple[float, ...] = (1.0, 5.0, 20.0)

    def deadline_s(self, baseline_s: float | None) -> float:
        """Seconds for one trial, where the default took `baseline_s`; None while unknown."""
        if baseline_s is None:
            return self.ceiling_s
        return min(max(self.factor * baseline_s, self.floor_s), self.ceiling_s)


class IsolatedBench:
    """Measures variants of one family on one problem in a worker process.

    Attributes:
        avoid: SPIR-V that is not run again, by hash, and what became of it; grows with losses.
    """

    isolated = True
    """A variant that loses the device loses a worker."""

    def __init__(
        self,
        supervisor: Supervisor,
        info: DeviceInfo,
        family: KernelFamily,
        precision: DType,
        problem: Problem,
        seed: int | None = None,
        effort: Effort | None = None,
        patience: Patience | None = None,
        avoid: dict[str, Measurement] | None = None,
    ) -> None:
        """Starts the worker where none runs, without waiting for it.

        Args:
            supervisor: owner of the worker; it stays the caller's.
            info: of the device, as this process sees it.
            family: what.
            precision: of the weights.
            problem: the dimensions that are timed.
            seed: of all inputs; None draws one.
            effort: how long each variant is timed.
            patience: deadlines.
            avoid: see above.

        Raises:
            MeasureError: no other process can make this family, or none can be started.
        """
        self.info, self.family, self.precision, self.problem = info, family, precision, problem
        self.avoid = {} if avoid is None else avoid
        self._rng = np.random.default_rng(seed)
        self._patience = patience or Patience()
        self._programs = Programs(info, family, precision, problem)
        self._supervisor = supervisor
        self._baseline_s: float | None = None
        self._took_s = 0.0
        self._in_a_row = 0
        self._good: tuple[Measurement, ShaderModule] | None = None
        self._opened = -1
        small = reduced_problem(family, precision, problem, info) or problem
        self._opening = {
            "do": "open",
            "device": info.device_uuid,
            "family": family_to_json(family),
            "precision": precision.name,
            "problem": dict(problem),
            "verify_on": dict(small),
            "effort": asdict(effort or Effort()),
        }
        supervisor.start()

    def __enter__(self) -> IsolatedBench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing here holds anything: the worker frees its memory with the next problem."""

    def next_seed(self) -> int:
        """A seed that was not used before in this bench."""
        return int(self._rng.integers(2**31))

    def describe(self, params: Mapping[str, Any]) -> Measurement:
        """A measurement of this variant with nothing measured yet."""
        return self._programs.describe(params)

    def measure(self, params: Mapping[str, Any], incumbent_ns: float | None = None) -> Measurement:
        """As `Bench.measure`.

        Raises:
            DeviceLostError: the device does not come back after several losses.
        """
        blank, module = self._programs.prepare(params)
        if module is None:
            return blank
        known = self._programs.known(blank, module) or self._avoided(blank)
        if known is not None:
            return known
        result = self._measure(blank, module, incumbent_ns)
        self._programs.keep(module, result)
        return result

    def recall(self, measured: Iterable[Measurement]) -> None:
        """See `Programs.recall`."""
        self._programs.recall(measured)

    def measure_again(self, params: Mapping[str, Any]) -> Measurement:
        """Times a variant anew, although it, or an equal program, was measured before.

        What its whole trial took becomes the measure of the others' deadlines.
        """
        blank, module = self._programs.prepare(params)
        if module is None:
            return blank
        return self._avoided(blank) or self._measure(blank, module, None, baseline=True)

    def check_everywhere(
        self, module: ShaderModule, params: Mapping[str, Any], seed: int
    ) -> Verification:
        """As `side_by_side.check_everywhere`.

        Raises:
            LostError: the variant could not be checked.
        """
        if module.sha256 in self.avoid:
            earlier = self.avoid[module.sha256]
            raise LostError(earlier.outcome, f"not run again: {earlier.reason}")
        message = {
            "do": "check",
            "module": module_to_json(module),
            "params": dict(params),
            "seed": seed,
        }
        try:
            return self._ask(
                message, [module.spirv], self._patience.ceiling_s,
                lambda answer: verification_from_json(answer["verification"]),
            )  # fmt: skip
        except LostError as error:
            self._blame(self.describe(params), module, error)
            raise

    def time_in_turns(
        self,
        modules: Sequence[ShaderModule],
        fastest_ns: float,
        rounds: int,
        seconds: float,
        seed: int,
    ) -> tuple[dict[str, Turns], dict[str, LostError]]:
        """As `side_by_side.time_in_turns`; one that is lost is left out, and the rest goes on.

        Returns:
            What was timed, and what was lost, by name.
        """
        left = list(modules)
        lost: dict[str, LostError] = {}
        while left:
            turn = [left[0].name]
            message = {
                "do": "turns",
                "modules": [module_to_json(m) for m in left],
                "fastest_ns": fastest_ns,
                "rounds": rounds,
                "time_s": seconds,
                "seed": seed,
            }
            try:
                timed = self._ask(
                    message,
                    [m.spirv for m in left],
                    self._patience.ceiling_s + 2 * seconds,
                    lambda answer: turns_from_json(answer["turns"]),
                    partial(_note_turn, turn),
                )
                return timed, lost
            except LostError as error:
                guilty = next((m for m in left if m.name == turn[-1]), left[0])
                lost[guilty.name] = error
                left.remove(guilty)
        return {}, lost

    def _measure(
        self,
        blank: Measurement,
        module: ShaderModule,
        incumbent_ns: float | None,
        baseline: bool = False,
    ) -> Measurement:
        try:
            found = self._run(blank, module, incumbent_ns)
        except LostError as error:
            return self._blame(blank, module, error)
        if found.ok:
            if baseline or self._baseline_s is None:
                self._baseline_s = self._took_s
            self._good = (blank, module)
        return found

    def _run(
        self, blank: Measurement, module: ShaderModule, incumbent_ns: float | None
    ) -> Measurement:
        message = {
            "do": "measure",
            "blank": blank.to_json(),
            "module": module_to_json(module),
            "incumbent_ns": incumbent_ns,
        }
        seconds = self._patience.deadline_s(self._baseline_s)
        found = self._ask(
            message, [module.spirv], seconds,
            lambda answer: Measurement.from_json(answer["measurement"]),
        )  # fmt: skip
        # Whose result it is, this process knows better than one that has run an unproven kernel.
        return replace(found, variant=blank.variant, spirv_sha256=blank.spirv_sha256)

    def _ask(
        self,
        message: Mapping[str, Any],
        blobs: Sequence[bytes],
        seconds: float,
        read: Callable[[Mapping[str, Any]], T],
        on_news: Callable[[Mapping[str, Any]], None] = lambda news: None,
    ) -> T:
        if self._in_a_row >= self._patience.in_a_row:
            self._probe()
        last: IdleLossError | None = None
        for _ in range(IDLE_LOSSES):
            try:
                answer = self._ask_once(message, blobs, seconds, read, on_news)
            except IdleLossError as error:
                log.warning("the measuring process had ended: %s; starting another one", error)
                last = error
                continue
            self._in_a_row = 0
            return answer
        raise DeviceLostError(
            f"{IDLE_LOSSES} measuring processes in a row ended before they began: {last}; "
            "something on this machine ends them, or --in-process does without"
        )

    def _ask_once(
        self,
        message: Mapping[str, Any],
        blobs: Sequence[bytes],
        seconds: float,
        read: Callable[[Mapping[str, Any]], T],
        on_news: Callable[[Mapping[str, Any]], None],
    ) -> T:
        self._open()
        started = time.monotonic()
        try:
            return self._supervisor.ask(message, blobs, seconds, read, on_news)
        except LostError as error:
            lost = error.outcome in LOSSES and not isinstance(error, IdleLossError)
            self._in_a_row = self._in_a_row + 1 if lost else 0
            self._supervisor.start()  # it gets ready while the next variant is compiled
            raise
        finally:
            self._took_s = time.monotonic() - started

    def _open(self) -> None:
        """Makes sure that a worker runs which has opened this problem."""
        last: Exception | None = None
        for _ in range(2):
            self._supervisor.start()
            if self._opened == self._supervisor.started and self._supervisor.holder is self:
                return
            try:
                seed = self.next_seed()
                opened = self._supervisor.ask(
                    {**self._opening, "seed": seed}, [], START_S, lambda answer: answer["opened"]
                )
            except LostError as error:  # not the fault of any variant
                last = error
                continue
            if opened != self.info.slug:
                raise DeviceLostError(
                    f"the measuring process found {opened} in place of {self.info.slug}: two "
                    "devices share a UUID, or a driver is gone; --in-process does without"
                )
            self._opened, self._supervisor.holder = self._supervisor.started, self
            return
        raise DeviceLostError(f"the measuring process cannot open {self.info.name}: {last}")

    def _probe(self) -> None:
        """After losses in a row: does the device still do what it did before?

        Raises:
            DeviceLostError: it does not.
        """
        count, reason = self._in_a_row, ""
        self._in_a_row = 0
        for pause in self._patience.pauses_s:
            log.warning(
                "%d variants in a row were lost; waiting %g s, then probing %s",
                count, pause, self.info.name,
            )  # fmt: skip
            time.sleep(pause)
            try:
                self._open()
                if self._good is None:
                    return
                blank, module = self._good
                found = self._run(blank, module, None)  # not to blame for anything
            except (DeviceLostError, MeasureError) as error:
                reason = str(error)
                continue
            if found.ok:
                return
            reason = f"{found.outcome.value}: {found.reason}"
        raise DeviceLostError(
            f"{count} variants in a row were lost, and {self.info.name} did not come back: {reason}"
        )

    def _blame(self, blank: Measurement, module: ShaderModule, error: LostError) -> Measurement:
        died = error.outcome in LOSSES or "ended it" in str(error)
        found = replace(blank, outcome=error.outcome, reason=str(error), note=ENDED if died else "")
        if died:
            self.avoid[module.sha256] = found
        return found

    def _avoided(self, blank: Measurement) -> Measurement | None:
        earlier = self.avoid.get(blank.spirv_sha256)
        if earlier is None:
            return None
        return replace(
            blank, outcome=earlier.outcome, reason=f"not run again: {earlier.reason}", note=ENDED
        )


def _note_turn(turn: list[str], news: Mapping[str, Any]) -> None:
    turn[:] = [str(news["turn"])]
