"""Runs that somebody looks at, on a Vulkan device.

A step that is looked at is recorded in pieces, one for each place looked at: between two the host
reads the residual stream. Other steps are as they were.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.inputs import Inputs, Rows
from kernelforge_runtime.models.planned import Output, PlannedSteps
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.observation import Mark, Observer, Place, places
from kernelforge_runtime.ops.step_buffers import StepInputs
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Buffer, Device

Made = TypeVar("Made")
MOST_KEPT = 8
"""Recorded steps of this kind; beyond, the oldest is forgotten."""


@dataclass
class ObservedStep:
    """A step in pieces.

    Attributes:
        pieces: each with the place that is looked at behind it; None behind the last one.
        work: memory of the temporaries.
        logits: where they are in it.
    """

    pieces: list[tuple[Plan | None, tuple[Place, Mark] | None]]
    work: Buffer | None
    logits: Temporary

    def look(self, mark: Mark, count: int) -> NDArray[np.float32]:
        """The first `count` rows of the stream at a mark, which was just reached."""
        x: Temporary | DeviceVector = mark.x
        kind, shape = np.float16 if x.bits == 16 else np.float32, (count, x.shape[-1])
        if isinstance(x, DeviceVector):
            values = x.memory.download(kind, shape)
        else:
            assert self.work is not None
            values = self.work.download(kind, shape, x.offset)
        return np.asarray(values * np.float32(mark.scale), np.float32)

    def close(self) -> None:
        """Releases plans and memory."""
        for plan, _ in self.pieces:
            if plan is not None:
                plan.close()
        if self.work is not None:
            self.work.close()


Key = tuple[StepSize, Output, tuple[Place, ...]]


class ObservedSteps(PlannedSteps):
    """What a model on a device adds to be looked at."""

    device: Device
    config: ModelConfig
    _ops: VulkanOps
    _resident: ResidentStates
    _observed: dict[Key, ObservedStep]

    @abstractmethod
    def _place(
        self,
        pieces: Sequence[Sequence[int] | NDArray[np.uint32]],
        states: Sequence[State],
        rows: Rows = None,
    ) -> StepSize:
        """Makes a step ready to run."""

    @property
    @abstractmethod
    def _first_inputs(self) -> StepInputs:
        """What steps read that are waited for at once."""

    @abstractmethod
    def _submit(self, plan: Plan) -> None:
        """Runs a plan and waits for it."""

    @abstractmethod
    def _with_room(self, make: Callable[[], Made]) -> Made:
        """What takes memory of the device, for which others may have to go."""

    def _advance_observed(
        self, piece: Inputs, state: State, output: Output, observer: Observer
    ) -> ObservedStep:
        """Runs one step of one sequence, showing the observer what it wants to see.

        Where the observer fails, the step is run to its end all the same: the state is never torn.
        """
        size = self._place([piece.ids], [state], piece.rows)
        step = self._observed_step(size, output, observer)
        failure: BaseException | None = None
        self._resident.watched = True
        try:
            for plan, seen in step.pieces:
                if plan is not None:
                    self._submit(plan)
                if seen is None or failure is not None:
                    continue
                try:
                    observer.see(seen[0], step.look(seen[1], len(piece)))
                except BaseException as error:
                    failure = error
        finally:
            self._resident.watched = False
        state.position += len(piece)
        if failure is not None:
            raise failure
        return step

    def _observed_step(self, size: StepSize, output: Output, observer: Observer) -> ObservedStep:
        wanted = tuple(filter(observer.wants, self._places(size.given)))
        key = (size, output, wanted)
        if key not in self._observed:
            while len(self._observed) >= MOST_KEPT:
                self._observed.pop(next(iter(self._observed))).close()
            self._observed[key] = self._with_room(
                lambda: self._record_observed(size, output, set(wanted))
            )
        return self._observed[key]

    def _places(self, given: bool) -> list[Place]:
        self._write(StepSize(1, 1, True, given), "last")
        found = places(self._ops.marks)
        if not any(place.block >= 0 for place in found):
            raise ModelError(
                f"{self.config.version}: its model file does not say where its layers end "
                "(ops.observe), so that nobody can look"
            )
        return found

    def _record_observed(self, size: StepSize, output: Output, wanted: set[Place]) -> ObservedStep:
        builder, logits = self._write(size, output)
        marks = [
            (place, mark)
            for place, mark in zip(places(self._ops.marks), self._ops.marks, strict=True)
            if place in wanted
        ]
        dispatches, work = builder.finish(self.device)
        step, start = ObservedStep([], work, logits), 0
        brought = self._first_inputs.brought
        try:
            for seen in [*marks, None]:
                end = len(dispatches) if seen is None else seen[1].calls
                where = "the head" if seen is None else f"layer {seen[0].block} {seen[0].part}"
                name = f"{self.config.version} {output} of {size.tokens} tokens up to {where}"
                part = dispatches[start:end]
                plan = Plan(self.device, part, name=name, brought=brought) if part else None
                brought = brought if plan is None else ()
                step.pieces.append((plan, seen))
                start = end
        except BaseException:
            step.close()
            raise
        return step

    def _forget_observed(self) -> None:
        for step in self._observed.values():
            step.close()
        self._observed.clear()
