"""Runs that somebody looks at, and runs of vectors in place of tokens, on a Vulkan device.

A step that is looked at is recorded in pieces, one for each place looked at: between two the host
reads the residual stream. Other steps are as they were.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.inputs import Inputs
from kernelforge_runtime.models.planned import Output, PlannedSteps
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.given_rows import GivenRows
from kernelforge_runtime.ops.observation import Mark, Observer, Place, places
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Buffer, Device

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


Key = tuple[StepSize, Output, bool, tuple[Place, ...]]


class ObservedSteps(PlannedSteps):
    """What a model on a device adds to be looked at."""

    device: Device
    config: ModelConfig
    _ops: VulkanOps
    _given: GivenRows | None = None
    _observed: dict[Key, ObservedStep]

    @abstractmethod
    def _place(
        self, pieces: Sequence[Sequence[int] | NDArray[np.uint32]], states: Sequence[State]
    ) -> StepSize:
        """Makes a step ready to run."""

    @abstractmethod
    def _submit(self, plan: Plan) -> None:
        """Runs a plan and waits for it."""

    def _advance_observed(
        self, piece: Inputs, state: State, output: Output, observer: Observer | None
    ) -> ObservedStep:
        """Runs one step of one sequence, showing the observer what it wants to see."""
        size = self._place([piece.ids], [state])
        if piece.rows is not None:
            if self._given is None:
                self._given = GivenRows(self.device, self.config.width, self._ops.activations)
            self._given.bring(piece.rows, size.tokens)
        step = self._observed_step(size, output, piece.rows is not None, observer)
        for plan, seen in step.pieces:
            if plan is not None:
                self._submit(plan)
            if seen is not None and observer is not None:
                observer.see(seen[0], step.look(seen[1], len(piece)))
        state.position += len(piece)
        return step

    def _observed_step(
        self, size: StepSize, output: Output, given: bool, observer: Observer | None
    ) -> ObservedStep:
        wanted = tuple(filter(observer.wants, self._places(given))) if observer is not None else ()
        key = (size, output, given, wanted)
        if key not in self._observed:
            while len(self._observed) >= MOST_KEPT:
                self._observed.pop(next(iter(self._observed))).close()
            self._observed[key] = self._record_observed(size, output, given, set(wanted))
        return self._observed[key]

    def _places(self, given: bool) -> list[Place]:
        self._written(StepSize(1, 1, single=True), "last", given)
        found = places(self._ops.marks)
        if not any(place.block >= 0 for place in found):
            raise ModelError(
                f"{self.config.version}: its model file does not say where its layers end "
                "(ops.observe), so that nobody can look"
            )
        return found

    def _written(self, size: StepSize, output: Output, given: bool) -> Any:
        self._ops.given = self._given if given else None
        try:
            return self._write(size, output)
        finally:
            self._ops.given = None

    def _record_observed(
        self, size: StepSize, output: Output, given: bool, wanted: set[Place]
    ) -> ObservedStep:
        builder, logits = self._written(size, output, given)
        marks = [
            (place, mark)
            for place, mark in zip(places(self._ops.marks), self._ops.marks, strict=True)
            if place in wanted
        ]
        dispatches, work = builder.finish(self.device)
        step, start = ObservedStep([], work, logits), 0
        try:
            for seen in [*marks, None]:
                end = len(dispatches) if seen is None else seen[1].calls
                where = "the head" if seen is None else f"layer {seen[0].block} {seen[0].part}"
                name = f"{self.config.version} {output} of {size.tokens} tokens up to {where}"
                part = dispatches[start:end]
                plan = Plan(self.device, part, name=name) if part else None
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

    def _close_observed(self) -> None:
        """Releases what looking took."""
        self._forget_observed()
        if self._given is not None:
            self._given.close()
            self._given = None
