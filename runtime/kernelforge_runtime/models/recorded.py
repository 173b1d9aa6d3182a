"""Steps of a model, recorded once for each size and what is wanted of it, and replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kernelforge_runtime.errors import OutOfMemoryError
from kernelforge_runtime.models.base import ModelConfig, ModelFile
from kernelforge_runtime.models.observed import Made, ObservedSteps
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.preflight import MemoryNeeds, Preflight
from kernelforge_runtime.models.step_writing import write_step
from kernelforge_runtime.models.traced import TracedSteps
from kernelforge_runtime.ops.builder import Call, PlanBuilder, Temporary
from kernelforge_runtime.ops.given_rows import GivenRows
from kernelforge_runtime.ops.step_buffers import StepBuffers, StepInputs
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan import BufferLike, Dispatch, Plan
from kernelforge_runtime.plan.plan import Timing
from kernelforge_runtime.vk import Buffer, BufferSlice


@dataclass(frozen=True)
class StepPlans:
    """What is submitted for a step that reads one half of its inputs.

    Attributes:
        run: everything up to the logits, and the choice of the largest where that is wanted.
        choose: the choice of tokens as the host tells it; it may be told while `run` goes on.
    """

    run: Plan
    choose: Plan | None = None

    def close(self) -> None:
        """Releases them."""
        self.run.close()
        if self.choose is not None:
            self.choose.close()


@dataclass
class Step:
    """A recorded step with the calls it was made from and the memory it works in.

    Attributes:
        halves: its plans for each half of the inputs; the second is recorded where steps are first
            submitted one behind the other.
    """

    calls: list[Call]
    work: Buffer | None
    logits: Temporary
    halves: list[StepPlans] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """What runs, with the first half."""
        return self.halves[0].run

    def close(self) -> None:
        """Releases plans and memory."""
        for plans in reversed(self.halves):  # the first one's own memory serves both
            plans.close()
        if self.work is not None:
            self.work.close()


class RecordedSteps(ObservedSteps, TracedSteps):
    """What a model on a device keeps of its steps."""

    config: ModelConfig
    needs: MemoryNeeds
    _file: ModelFile
    _weights: Any
    _preflight: Preflight
    _buffers: StepBuffers | None
    _steps: dict[tuple[StepSize, Output], Step]
    _takes_vectors = False

    def _write(self, size: StepSize, output: Output) -> tuple[PlanBuilder, Temporary]:
        """The calls of a step, and where its logits are."""
        assert self._buffers is not None
        how = self._weights, self.config.vocab, self._buffers.halves[0]
        return write_step(self._file, self._ops, *how, size, output)

    def _step(self, size: StepSize, output: Output) -> Step:
        return self._steps.get((size, output)) or self._record(size, output)

    def _record(self, size: StepSize, output: Output, timestamps: Timing = "none") -> Step:
        """A step's plans; where there is no memory for it, those of other sizes are let go."""
        return self._with_room(lambda: self._recorded(size, output, timestamps))

    def _with_room(self, make: Callable[[], Made]) -> Made:
        """What takes memory of the device; recorded steps go where there is none left for it."""
        try:
            return make()
        except OutOfMemoryError:
            self._forget_steps()
        with self._preflight.explaining(self.needs):
            return make()

    def _recorded(self, size: StepSize, output: Output, timestamps: Timing) -> Step:
        builder, logits = self._write(size, output)
        dispatches, work = builder.finish(self.device)
        step = Step(builder.calls, work, logits)
        name = f"{self.config.version} {output} of {size.tokens} tokens"
        try:
            step.halves.append(self._plans(dispatches, name, 0, output, timestamps))
        except BaseException:
            step.close()
            raise
        if timestamps == "none":
            self._steps[(size, output)] = step
        return step

    def _half(self, step: Step, size: StepSize, half: int) -> StepPlans:
        """A step's plans for a half of the inputs."""
        while len(step.halves) <= half:
            assert self._buffers is not None
            first, index = step.halves[0], len(step.halves)
            swapped = dict(zip(*(self._bound(size, i) for i in (0, index)), strict=True))
            plans = first.run, *([first.choose] if first.choose is not None else [])
            dispatches = [
                replace(d, buffers=_swapped(d.buffers, swapped))
                for plan in plans
                for d in plan.dispatches
            ]
            output: Output = "last" if first.choose is None else "choice"
            step.halves.append(self._plans(dispatches, first.run.name, index, output, "none"))
        return step.halves[half]

    def _bound(self, size: StepSize, half: int) -> list[BufferSlice]:
        """What a half of a step's dispatches bind of what travels, in the same order for either."""
        assert self._buffers is not None
        slices = [*self._buffers.halves[half].slices]
        if size.given and self._ops.given is not None:
            slices.append(self._ops.given.tensor(size.tokens, half).memory)
        return slices

    def _plans(
        self,
        dispatches: Sequence[Dispatch],
        name: str,
        half: int,
        output: Output,
        timestamps: Timing,
    ) -> StepPlans:
        assert self._buffers is not None
        brought = self._buffers.halves[half].brought
        if output != "choice":
            return StepPlans(Plan(self.device, dispatches, timestamps, name, brought, True))
        run = Plan(self.device, dispatches[:-1], timestamps, name, brought, True)
        try:
            choose = Plan(self.device, dispatches[-1:], timestamps, f"{name}, its end", (), True)
        except BaseException:
            run.close()
            raise
        return StepPlans(run, choose)

    def require_vectors(self) -> None:
        """Raises ModelError where this version reads more of a token than its embedding."""
        if not self._takes_vectors:
            if self._ops.given is None:  # no step goes for it: one may be at work
                self._ops.given = self._given_rows()
            self._write(StepSize(1, 1, True, given=True), "last")
        self._takes_vectors = True

    def _rows_given(self) -> GivenRows:
        """Where vectors are brought."""
        if self._ops.given is None:
            self._ops.given = self._with_room(self._given_rows)
        return self._ops.given

    def _given_rows(self) -> GivenRows:
        return GivenRows(self.device, self.config.width, self._ops.activations)

    @property
    def _first_inputs(self) -> StepInputs:
        assert self._buffers is not None
        return self._buffers.halves[0]

    def _forget_steps(self) -> None:
        for step in self._steps.values():
            step.close()
        self._steps.clear()
        self._forget_observed()


def _swapped(
    buffers: Mapping[str, BufferLike], others: Mapping[BufferSlice, BufferSlice]
) -> dict[str, BufferLike]:
    """Buffers with a half's slices in place of the other's."""
    return {
        name: others.get(given, given) if isinstance(given, BufferSlice) else given
        for name, given in buffers.items()
    }
