"""Writes down the dispatches of a step, then gives their temporary tensors memory.

Temporaries live from the dispatch that writes them to the last one that reads them, and share one
buffer: those that never live at the same time overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.fusion import LaidOut, Wanted, takes_fused
from kernelforge_runtime.bundle.select import KernelSet, Selection
from kernelforge_runtime.plan import BufferLike, Dispatch
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.plan.scratch import own_bytes
from kernelforge_runtime.vk import Buffer, Device


@dataclass(eq=False)
class Temporary:
    """A tensor that lives inside a step: [T, columns] or [S, T, columns], 16 or 32 bits each."""

    shape: tuple[int, ...]
    first: int = -1
    last: int = -1
    offset: int = -1
    bits: int = field(default=32, kw_only=True)

    @property
    def nbytes(self) -> int:
        """Size in bytes, rounded up to the alignment of a binding."""
        size = math.prod(self.shape) * self.bits // 8
        return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class TemporarySlice:
    """Some bytes of a temporary."""

    whole: Temporary
    offset: int
    nbytes: int


Operand = Temporary | TemporarySlice | BufferLike


@dataclass(frozen=True)
class Call:
    """One dispatch to be: the kernel chosen and its operands by binding name.

    Attributes:
        block: of the model that it belongs to; None outside of blocks.
    """

    selection: Selection
    problem: Problem
    operands: Mapping[str, Operand]
    constants: Mapping[str, int | float] = field(default_factory=dict)
    label: str = ""
    block: int | None = None


class PlanBuilder:
    """Collects the calls of a step.

    Attributes:
        calls: in order.
        block: the model's block that calls belong to from here on; None outside of blocks.
        forgone: kernels that would have done what others do here, for whoever tunes both.
    """

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self.block: int | None = None
        self.forgone: list[Wanted] = []
        self.calls: list[Call] = []
        self._temporaries: dict[int, Temporary] = {}

    def call(
        self,
        family: str,
        precision: str,
        problem: Problem,
        operands: Mapping[str, Operand],
        constants: Mapping[str, int | float] | None = None,
        label: str = "",
        layouts: Layouts = (),
    ) -> None:
        """Adds a dispatch of the best kernel for this problem.

        Raises:
            BundleError: no bundle has a kernel for it.
        """
        selection = self.kernels.select(family, precision, problem, layouts)
        index = len(self.calls)
        for operand in operands.values():
            whole = operand.whole if isinstance(operand, TemporarySlice) else operand
            if isinstance(whole, Temporary):
                if whole.first < 0:
                    whole.first = index
                whole.last = index
                self._temporaries[id(whole)] = whole
        self.calls.append(Call(selection, problem, operands, constants or {}, label, self.block))

    def fuses(
        self, fused: Wanted | LaidOut, parts: Sequence[Wanted | LaidOut], otherwise: bool
    ) -> bool:
        """See `takes_fused`; remembers what it decided against."""
        taken = takes_fused(self.kernels, fused, parts, otherwise)
        # What is tuned is tuned in every layout.
        self.forgone += (
            [(name, form, problem) for name, form, problem, *_ in parts] if taken else [fused[:3]]
        )
        return taken

    def work_bytes(self) -> int:
        """Bytes of the buffer that holds the temporaries; gives each its place in it."""
        return assign_offsets(list(self._temporaries.values()))

    def scratch_bytes(self) -> dict[str, int]:
        """Bytes of the memory that kernels need for themselves, by its name; see Scratch."""
        return own_bytes(
            (call.selection.entry.signature, call.problem, call.operands) for call in self.calls
        )

    def finish(self, device: Device) -> tuple[list[Dispatch], Buffer | None]:
        """The dispatches with memory bound, and the buffer that holds the temporaries."""
        size = self.work_bytes()
        memory = device.buffer(size, "work") if size else None
        if memory is not None:
            memory.fill(0)  # padding that no kernel writes must never hold a NaN
        dispatches = [
            Dispatch(
                call.selection.module,
                call.problem,
                {name: _bind(o, memory) for name, o in call.operands.items()},
                call.constants,
                call.label,
            )
            for call in self.calls
        ]
        return dispatches, memory


def _bind(operand: Operand, memory: Buffer | None) -> BufferLike:
    if isinstance(operand, TemporarySlice):
        assert memory is not None
        return memory.slice(operand.whole.offset + operand.offset, operand.nbytes)
    if isinstance(operand, Temporary):
        assert memory is not None
        return memory.slice(operand.offset, operand.nbytes)
    return operand


def assign_offsets(tensors: list[Temporary]) -> int:
    """Places tensors so that those alive at the same time do not overlap; returns bytes needed.

    Largest first, each at the lowest offset that is free during its life.
    """
    placed: list[Temporary] = []
    total = 0
    for tensor in sorted(tensors, key=lambda t: (-t.nbytes, t.first)):
        rivals = [p for p in placed if p.first <= tensor.last and tensor.first <= p.last]
        offset = 0
        for rival in sorted(rivals, key=lambda p: p.offset):
            if offset + tensor.nbytes <= rival.offset:
                break
            offset = max(offset, rival.offset + rival.nbytes)
        tensor.offset = offset
        placed.append(tensor)
        total = max(total, offset + tensor.nbytes)
    return total
