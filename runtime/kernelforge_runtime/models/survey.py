"""What a model hands to an op set, found out from its file's shapes: no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F32, QUANTIZED, DType
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.shapes import Shapes
from kernelforge_runtime.ops.device_weights import (
    LayoutsOf,
    row_major,
    stack_place,
    vector_elements,
)
from kernelforge_runtime.ops.vocabulary import LazyRows, Part, Weight
from kernelforge_runtime.ops.weight_layout import packed_nbytes
from kernelforge_runtime.plan.arena import reserved
from kernelforge_runtime.quantize import BLOCK, K_MULTIPLE, matrix_format
from kernelforge_runtime.weight_formats import WeightFormats
from kernelforge_runtime.weights import Checkpoint


@dataclass(frozen=True)
class Multiplied:
    """One weight of a stack.

    Attributes:
        name: in the file.
        shape: [rows, k], as it multiplies.
        as_stored: whether the file holds just these rows: not transposed, nothing added.
        layer: that it belongs to.
    """

    name: str
    shape: tuple[int, ...]
    as_stored: bool
    layer: int | None = None


class Survey:
    """Takes weights as an op set does, and only notes what they are.

    Attributes:
        stacks: of every matrix its parts.
        tables: [V, C] of every embedding table; tables that stay in the file are left out.
        min_rows: of every matrix the least rows that it must have.
        vectors: elements of each tensor that stays float32.
    """

    activations = F32

    def __init__(self, checkpoint: Checkpoint) -> None:
        file = recognise(checkpoint)
        self.stacks: list[tuple[Multiplied, ...]] = []
        self.tables: list[tuple[int, ...]] = []
        self._stored_tables: list[str] = []
        self.min_rows: list[int] = []
        self.vectors: list[int] = []
        shapes = Shapes(checkpoint)
        self._handed, self._asked = shapes.handed, shapes.asked
        file.load(self, shapes, file.read_config(checkpoint))  # type: ignore[arg-type]

    def vector(self, values: NDArray[np.float32]) -> None:
        """Notes a small tensor."""
        self.vectors.append(values.size)

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> None:
        """Notes a stack."""
        self.min_rows.append(min_rows)
        self.stacks.append(
            tuple(Multiplied(p.name, p.weight.shape, self._is_stored(p), p.layer) for p in parts)
        )

    def table(self, name: str, rows: Weight) -> None:
        """Notes an embedding table."""
        self.tables.append(rows.shape)
        if self._is_stored(Part(name, rows)):
            self._stored_tables.append(name)

    def host_tables(self, tables: Sequence[LazyRows]) -> None:
        """They take no memory."""

    def _is_stored(self, part: Part) -> bool:
        stored = self._handed.get(part.name)
        return (
            stored is not None
            and isinstance(part.weight, np.ndarray)
            and stored.shape == part.weight.shape
            and stored.strides == part.weight.strides
            and np.may_share_memory(stored, part.weight)
        )

    def quantisable(self, weights: DType) -> tuple[str, ...]:
        """Tensors of the file that a model kept in q8 or nf4 has as whole quantised matrices."""
        return tuple(
            part.name
            for stack in self.stacks
            if matrix_format(weights, _widest(stack)) in QUANTIZED
            for part in stack
            if part.as_stored and part.shape[1] % K_MULTIPLE == 0
        )

    def formats(self, formats: WeightFormats) -> dict[str, DType]:
        """What a model keeps the file's tensors in, of those that it keeps as they are.

        Of rows that are no whole words of scales only where their stack is not quantised.
        """
        found = dict.fromkeys(self._stored_tables, formats.table)
        for stack in self.stacks:
            form = matrix_format(_asked(stack, formats), _widest(stack))
            for part in stack:
                if part.as_stored and (form not in QUANTIZED or part.shape[1] % K_MULTIPLE == 0):
                    found[part.name] = form
        return {name: form for name, form in found.items() if self._asked[name] == 1}

    def nbytes(self, weights: DType | WeightFormats) -> int:
        """Bytes of the model's weights in these formats, scales included, without padding."""
        formats = _formats(weights)
        total = F32.nbytes(sum(self.vectors))
        for stack in self.stacks:
            form = matrix_format(_asked(stack, formats), _widest(stack))
            elements = sum(int(np.prod(part.shape)) for part in stack)
            scales = 2 * elements // BLOCK if form in QUANTIZED else 0
            total += form.nbytes(elements) + scales
        form = formats.table
        return total + sum(form.nbytes(int(np.prod(shape))) for shape in self.tables)

    def device_nbytes(
        self,
        weights: DType | WeightFormats,
        max_storage_buffer: int,
        layouts_of: LayoutsOf = row_major,
    ) -> int:
        """Bytes that a device gives to the weights: scales, padding and alignment too.

        Args:
            weights: the formats, or one for all.
            max_storage_buffer: bytes that one binding of the device can show.
            layouts_of: how matrices are to lie in memory.
        """
        formats = _formats(weights)
        pieces = [F32.nbytes(vector_elements(size)) for size in self.vectors]
        for stack, least in zip(self.stacks, self.min_rows, strict=True):
            shapes = [part.shape for part in stack]
            asked = _asked(stack, formats)
            place = stack_place(shapes, least, asked, max_storage_buffer, layouts_of)
            rows, k, form, layouts = place
            pieces.append(packed_nbytes(rows, k, form, layouts))
            if form in QUANTIZED:
                pieces.append(2 * rows * k // BLOCK)
        form = formats.table
        pieces += [form.nbytes(int(np.prod(shape))) for shape in self.tables]
        return sum(reserved(size) for size in pieces)


def _formats(weights: DType | WeightFormats) -> WeightFormats:
    return WeightFormats(weights) if isinstance(weights, DType) else weights


def _asked(stack: Sequence[Multiplied], formats: WeightFormats) -> DType:
    return formats.stack(part.layer for part in stack)


def _widest(stack: Sequence[Multiplied]) -> int:
    return max(part.shape[1] for part in stack)
