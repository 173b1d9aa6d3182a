"""Where a matrix lies on the device: filled a few rows at a time, in whatever layout.

A layout is followed on the way from the processor's cache to the device's memory: the rows that
are packed at once fit the cache, and nothing of the matrix is ever in memory a second time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.ops.vocabulary import Weight
from kernelforge_runtime.ops.weight_layout import (
    ROW_MAJOR,
    packed,
    packed_nbytes,
    row_moves,
    row_pitch,
)
from kernelforge_runtime.ops.weight_writing import forget, seen_as, write
from kernelforge_runtime.vk import BufferSlice

AT_ONCE = 1 << 21
"""Weights that are copied at a time to memory that the host cannot see."""
CACHED_ELEMENTS = 1 << 20
"""Weights that are packed at a time into memory that it sees: they stay in the processor's cache.
In that of one core alone a quarter would; but passing the interpreter on takes longer then."""

MOST_KEPT_BYTES = 1 << 22
"""Of the rows that a thread packs from: more are given back at once."""


@dataclass(frozen=True)
class PlacedRows:
    """Rows of a file that a matrix has from its row `first` on."""

    first: int
    name: str
    weight: Weight

    @property
    def end(self) -> int:
        """The row behind them."""
        return self.first + len(self.weight)


class _Spare(threading.local):
    """Rows that a thread packs from: fresh memory would be zeroed each time."""

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def rows(self, rows: int, k: int, form: DType) -> NDArray[np.generic]:
        nbytes = form.nbytes(rows * k)
        if nbytes > MOST_KEPT_BYTES:
            return np.empty((rows, k), form.np)
        if nbytes > len(self._kept):
            self._kept = np.empty(nbytes, np.uint8)
        return self._kept[:nbytes].view(form.np).reshape(rows, k)


_SPARE = _Spare()


class MatrixPlace:
    """Device memory of a matrix [rows, k] in a format and a layout.

    Attributes:
        is_seen: whether the host sees the memory: rows may then be written in any order, by several
            threads.
        step: rows that are written at once; multiples of it can be written alone.
    """

    def __init__(
        self,
        piece: BufferSlice,
        rows: int,
        k: int,
        form: DType,
        layouts: Layouts = ROW_MAJOR,
        within: DType | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            piece: the memory.
            rows: of the matrix.
            k: its width.
            form: of its elements.
            layouts: how they lie.
            within: another format that they must fit; see StoredMatrix.write.
        """
        self._within = within
        self._piece, self._k, self._form, self._layouts = piece, k, form, layouts
        memory = seen_as(piece, 1, packed_nbytes(rows, k, form, layouts) * 8 // form.bits, form)
        self._memory = None if memory is None else memory.reshape(-1)
        self.is_seen = self._memory is not None
        at_once = CACHED_ELEMENTS if self.is_seen else AT_ONCE
        self.step, self._pitch = rows_at_once(rows, k, form, layouts, at_once)

    def fill(self, parts: Sequence[PlacedRows], first: int, end: int) -> None:
        """Writes some rows: those of the parts, and zeros where no part is.

        Args:
            parts: ascending, none upon another.
            first: a multiple of `step`.
            end: another, or the number of rows.

        Raises:
            ModelError: weights are not finite, or do not fit the format.
        """
        begin, behind = (self._form.nbytes(row * self._pitch) for row in (first, end))
        self._piece.buffer.expect(self._piece.offset + begin, behind - begin)
        for low in range(first, end, self.step):
            high = min(low + self.step, end)
            plain = self._own_rows(low, high)
            if plain is None:
                plain = _SPARE.rows(high - low, self._k, self._form)
            _fill(
                plain,
                [part for part in parts if low < part.end and part.first < high],
                low,
                self._form,
                self._within,
            )
            self._keep(plain, low, high)
        for part in parts:
            low, high = max(first, part.first), min(end, part.end)
            if low < high:
                forget(part.weight[low - part.first : high - part.first])

    def _own_rows(self, low: int, high: int) -> NDArray[np.generic] | None:
        """The rows in the device's memory, where they lie there as they are."""
        if self._memory is None or self._layouts != ROW_MAJOR:
            return None
        return self._memory[low * self._k : high * self._k].reshape(high - low, self._k)

    def _keep(self, plain: NDArray[np.generic], low: int, high: int) -> None:
        """Packs rows to where they belong."""
        start = low * self._pitch
        if self._memory is None:
            at = self._piece.offset + self._form.nbytes(start)
            self._piece.buffer.upload(packed(plain, self._form, self._layouts), at)
        elif self._layouts != ROW_MAJOR:
            memory = self._memory[start : start + (high - low) * self._pitch]
            if self._pitch != self._k:
                memory[...] = 0  # what is between rows
            moves = row_moves(high - low, self._k, self._form, self._layouts)
            moves.run(plain.reshape(-1), memory)


def _fill(
    plain: NDArray[np.generic],
    parts: Sequence[PlacedRows],
    low: int,
    form: DType,
    within: DType | None,
) -> None:
    filled = 0
    for part in parts:
        begin, end = max(low, part.first), min(low + len(plain), part.end)
        plain[filled : begin - low] = 0
        filled, width = end - low, part.weight.shape[1]
        target = plain[begin - low : filled]
        rows = part.weight[begin - part.first : end - part.first]
        write(part.name, rows, target[:, :width], form, within)
        if width < plain.shape[1]:
            target[:, width:] = 0
    plain[filled:] = 0


def rows_at_once(
    rows: int, k: int, form: DType, layouts: Layouts, elements: int
) -> tuple[int, int]:
    """Rows that can be packed without the others: a few whose memory is one piece, or all.

    Args:
        rows: of the matrix.
        k: its width.
        form: of its elements.
        layouts: of the matrix.
        elements: that the rows are to hold.

    Returns:
        The rows, and the elements of memory that each takes, on an average.
    """
    tall, pitch = row_pitch(rows, k, form, layouts)
    least = math.lcm(tall, ROUTE_ROWS)
    step = max(1, elements // (least * max(k, 1))) * least
    return (rows if tall == rows else step), pitch
