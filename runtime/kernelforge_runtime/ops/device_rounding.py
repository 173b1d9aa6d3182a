"""Weights that the host only copies: a kernel rounds them to float16 where they lie.

NumPy takes seven passes over a matrix for it, and two threads hardly more than one of them; a
device of any kind takes one. What does not fit float16 is refused on the way, by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import BF16, F16, DType
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.ops.vocabulary import Weight
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.vk import Buffer, BufferSlice, Device
from kernelforge_runtime.weight_formats import WeightFormats

FAMILY: Final = "bf16_to_f16"
QUAD_BYTES: Final = 16
"""What the kernel counts in."""
MOST_QUADS: Final = 1 << 19
"""Of a dispatch: no device's limits are below it, and no watchdog waits for it."""


def rounding_problems(formats: WeightFormats) -> list[tuple[str, str, Problem, int]]:
    """(family, precision, problem, calls) of a load in these formats, as of a model's steps."""
    if F16 not in {*formats.asked, formats.table}:
        return []
    return [(FAMILY, F16.name, Problem(N=MOST_QUADS), 1)]


class DeviceRounding:
    """Pieces of memory that hold bfloat16 bits and are to hold float16 ones.

    Attributes:
        quads: that were rounded so far.
    """

    def __init__(
        self,
        device: Device,
        kernels: KernelSet,
        begin: Callable[[Callable[[], None]], object] = lambda job: job(),
    ) -> None:
        """Nothing yet.

        Args:
            device: that has the memory.
            kernels: among which there may be one for it.
            begin: takes what a thread may do meanwhile.
        """
        self._device, self._begin = device, begin
        self._kernel = kernels.find(FAMILY, F16.name, Problem(N=MOST_QUADS))
        self._spans: list[tuple[Buffer, int, int]] = []
        self.quads = 0

    def takes(self, form: DType, weights: Iterable[Weight]) -> bool:
        """Whether weights that are to be in this format can be copied as they are."""
        return (
            form == F16
            and self._kernel is not None
            and all(isinstance(w, StoredMatrix) and w.dtype == BF16 for w in weights)
        )

    def add(self, piece: BufferSlice) -> None:
        """Memory of an arena to be rounded, to its end; what is behind weights does not matter."""
        if not self._spans:
            self._begin(self._make_pipeline)
        end = piece.offset + piece.nbytes
        if self._spans:
            buffer, first, last = self._spans[-1]
            if buffer is piece.buffer and last == piece.offset:
                self._spans[-1] = buffer, first, end
                return
        self._spans.append((piece.buffer, piece.offset, end))

    def run(self) -> None:
        """Rounds everything, once all of it is written.

        Raises:
            DeviceLostError: the device was lost.
        """
        if not self._spans:
            return
        assert self._kernel is not None
        spans, self._spans = self._spans, []
        dispatch = partial(Dispatch, self._kernel.module, label="rounding")
        dispatches = []
        for buffer, first, end in spans:
            for start in range(first, end, QUAD_BYTES * MOST_QUADS):
                quads = min((end - start) // QUAD_BYTES, MOST_QUADS)
                piece = buffer.slice(start, QUAD_BYTES * quads)
                dispatches.append(dispatch(dims=Problem(N=quads), buffers={"weights": piece}))
                self.quads += quads
        with Plan(self._device, dispatches, name="rounding of weights") as plan:
            plan.run()

    def _make_pipeline(self) -> None:
        assert self._kernel is not None
        with suppress(KernelForgeError):  # run() says so
            self._device.pipeline(self._kernel.module, 0)
