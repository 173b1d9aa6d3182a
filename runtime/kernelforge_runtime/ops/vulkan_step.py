"""What every group of Vulkan ops writes with: the step's size, its buffers, the calls so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.ops.builder import Operand, PlanBuilder, Temporary
from kernelforge_runtime.ops.device_state import DeviceState
from kernelforge_runtime.ops.device_weights import DeviceVector, DeviceWeights, part_of
from kernelforge_runtime.ops.given_rows import GivenRows
from kernelforge_runtime.ops.observation import Mark
from kernelforge_runtime.ops.step_buffers import StepInputs
from kernelforge_runtime.ops.weight_layout import choose_layouts
from kernelforge_runtime.vk import Buffer, BufferSlice, Device
from kernelforge_runtime.weight_formats import WeightFormats

Tensor = Temporary | DeviceVector
"""What an op takes: made inside the step, or by the host for it."""


@dataclass(frozen=True)
class StepSize:
    """What a plan is recorded for.

    Attributes:
        tokens: T, of all sequences together.
        sequences: B.
        single: token i is sequence i's only one, as in decode; T is B then.
        given: whether there are vectors among the tokens.
    """

    tokens: int
    sequences: int = 1
    single: bool = False
    given: bool = False


class StepWriter:
    """Base of the Vulkan op set: its groups of ops are classes that write with this one.

    Attributes:
        store: the weights.
        state: device memory of the recurrent state by name.
        activations: F32 or F16.
        marks: what was observed in the step.
        given: where vectors are brought; None until a step has some.
    """

    def __init__(
        self, device: Device, kernels: KernelSet, formats: WeightFormats, activations: DType = F32
    ) -> None:
        self.device, self.kernels, self.activations = device, kernels, activations

        @cache
        def layouts_of(form: DType, rows: int, k: int) -> Layouts:
            return choose_layouts(kernels, form, rows, k, activations)

        self.store = DeviceWeights(device, formats, layouts_of)
        self.state: dict[str, DeviceState] = {}
        self._builder = PlanBuilder(kernels)
        self._size = StepSize(1, 1, True)
        self._inputs: StepInputs | None = None
        self._aside: dict[str, Buffer] = {}
        self._carried: dict[str, list[int]] = {}
        self.marks: list[Mark] = []
        self.given: GivenRows | None = None

    def vector(self, values: NDArray[np.float32]) -> DeviceVector:
        """Uploads a small tensor in float32."""
        return self.store.vector(values)

    def begin(self, size: StepSize, inputs: StepInputs) -> None:
        """Starts writing down a step."""
        self._builder, self._size, self._inputs = PlanBuilder(self.kernels), size, inputs
        self._carried, self.marks = {}, []

    def finish(self) -> PlanBuilder:
        """Ends the step: what was carried aside moves into the state. Returns the builder."""
        for name, entries in self._carried.items():
            kept = self.state[name]
            aside = self._aside[name].slice(0, kept.memory.nbytes)
            for run in evenly_spaced(sorted(set(entries))):
                start = run.start * kept.entry_bytes
                left = kept.memory.nbytes - start
                self._call(
                    "copy",
                    Problem(L=len(run), B=self._size.sequences, E=kept.slot_bytes // 4),
                    {
                        "in_x": part_of(aside, start, left),
                        "out_y": part_of(kept.memory, start, left),
                        "segment": self._segment,
                    },
                    {"stride": run.step * kept.entry_bytes // 4},
                    label=name,
                )
        return self._builder

    def block(self, index: int | None) -> None:
        """Calls from here on belong to this block."""
        self._builder.block = index

    def observe(self, block: int, part: str, x: Tensor, scale: float = 1.0) -> None:
        """Notes how many calls were before it."""
        self.marks.append(Mark(block, part, x, scale, len(self._builder.calls)))

    def _call(
        self,
        family: str,
        problem: Problem,
        operands: Mapping[str, Operand | Tensor],
        constants: Mapping[str, int | float] | None = None,
        label: str = "",
        precision: str = "f32",
        layouts: Layouts = (),
    ) -> None:
        bound = {n: o.memory if isinstance(o, DeviceVector) else o for n, o in operands.items()}
        self._builder.call(family, precision, problem, bound, constants, label or family, layouts)

    @property
    def _step(self) -> StepInputs:
        if self._inputs is None:
            raise PlanError("an op was called outside of a step: call begin first")
        return self._inputs

    @property
    def _segment(self) -> BufferSlice:
        return self._step.segment

    @property
    def _tokens(self) -> int:
        return self._size.tokens

    def _stream(self, *shape: int) -> Temporary:
        """A tensor in the activations' type."""
        return Temporary(shape, bits=self.activations.bits)

    def _following(self, state: str, index: int) -> BufferSlice:
        """Where a kernel leaves a carry that other workgroups of it still read: aside.

        The end of the step brings it into the state.
        """
        kept = self.state[state]
        if state not in self._aside:
            self._aside[state] = self.device.buffer(kept.memory.nbytes, f"{state} aside")
        self._carried.setdefault(state, []).append(index)
        whole = self._aside[state].slice(0, kept.memory.nbytes)
        return part_of(whole, index * kept.entry_bytes, kept.entry_bytes)

    def _pages(self, rows: int, row_bytes: int) -> Sequence[tuple[int, int]]:
        """(first row, rows) of the pieces of a matrix that a binding can hold."""
        limit = self.device.info.max_storage_buffer
        most = max(limit // row_bytes // PAGE_ROWS * PAGE_ROWS, PAGE_ROWS)
        if rows <= most:
            return [(0, rows)]
        return [(first, min(most, rows - first)) for first in range(0, rows, most)]

    def close(self) -> None:
        """Releases weights, state, what was carried aside, and where vectors are brought."""
        self.store.close()
        if self.given is not None:
            self.given.close()
            self.given = None
        for kept in self.state.values():
            kept.close()
        for buffer in self._aside.values():
            buffer.close()
        self.state.clear()
        self._aside.clear()


def evenly_spaced(entries: Sequence[int]) -> list[range]:
    """Ascending entries as few ranges, so that one dispatch each can move them."""
    runs: list[range] = []
    for entry in entries:
        last = runs[-1] if runs else None
        if last is not None and len(last) == 1:
            runs[-1] = range(last.start, entry + 1, entry - last.start)
        elif last is not None and entry == last[-1] + last.step:
            runs[-1] = range(last.start, entry + 1, last.step)
        else:
            runs.append(range(entry, entry + 1))
    return runs


PAGE_ROWS = 1024
"""Matrices beyond the binding limit are cut at multiples of this: offsets stay aligned."""
