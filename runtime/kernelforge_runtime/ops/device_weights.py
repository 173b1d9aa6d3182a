"""Weights on a Vulkan device: packed, padded and uploaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.dtypes import BF16, QUANTIZED, U32, DType
from kernelforge_runtime.ops.device_rounding import DeviceRounding
from kernelforge_runtime.ops.later_work import LaterWork
from kernelforge_runtime.ops.matrix_place import MatrixPlace, PlacedRows
from kernelforge_runtime.ops.vocabulary import Part, Weight
from kernelforge_runtime.ops.weight_layout import MAX_GROWTH, ROW_MAJOR, packed, packed_nbytes
from kernelforge_runtime.ops.weight_writing import seen_as, write_words
from kernelforge_runtime.plan import Arena
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.quantize import BLOCK, matrix_format
from kernelforge_runtime.vk import BufferSlice, Device
from kernelforge_runtime.weight_formats import WeightFormats

K_MULTIPLE = 32
ROUTE_BLOCK_BYTES = 1 << 16
JOB_ELEMENTS = 1 << 21
"""Weights that one thread does at a time."""
LayoutsOf = Callable[[DType, int, int], Layouts]
"""(format, rows, k) -> how such a matrix is to lie in memory."""
OnUpload = Callable[[str, int], None]
"""Told of every tensor that is on the device: its name, and how many weights it has."""


def row_major(form: DType, rows: int, k: int) -> Layouts:
    """A LayoutsOf that leaves every matrix as it is."""
    return ROW_MAJOR


@dataclass(frozen=True)
class DeviceVector:
    """A small float32 tensor on the device, padded to a multiple of 32 values."""

    memory: BufferSlice
    shape: tuple[int, ...]
    bits: int = 32


@dataclass(frozen=True)
class DeviceMatrix:
    """A stack of weights on the device.

    Attributes:
        weight: [rows, k] in the format, padded with zeros; row-major unless `layouts` has it.
        format: of the weights.
        scale: of q8 and nf4, [rows, k / 64]: two float16 scales per word; see `quantize`.
        parts: (first row, rows, part) without the weights themselves.
        layouts: of `weight`; only kernels that want it so may read it. Scales are row-major.
    """

    weight: BufferSlice
    rows: int
    k: int
    parts: tuple[tuple[int, int, Part], ...]
    label: str
    format: DType
    scale: BufferSlice | None = None
    layouts: Layouts = ROW_MAJOR


class DeviceWeights:
    """Takes a model's weights at load, in one weight format.

    Attributes:
        formats: what matrices and tables are kept in; vectors stay float32. Of q8 and nf4 some
            are float16, see `quantize.matrix_format` and `table_format`.
        arena: the memory of the weights.
        routes: that of what steps say of them.
        layouts_of: how matrices are to lie in memory.
        on_upload: called after each tensor.
        later: what is given to it instead of being done at once: matrices and tables of a file, in
            memory that the host sees. None: everything is done at once.
        rounding: what is given to it stays to be rounded by whoever set it. None: the host rounds.
    """

    def __init__(
        self,
        device: Device,
        formats: WeightFormats,
        layouts_of: LayoutsOf = row_major,
    ) -> None:
        self.formats = formats
        self.arena = Arena(device, "weights")
        self.routes = Arena(device, "routes", ROUTE_BLOCK_BYTES)
        self.layouts_of = layouts_of
        self.on_upload: OnUpload = lambda name, count: None
        self.later: LaterWork | None = None
        self.rounding: DeviceRounding | None = None

    def vector(self, values: NDArray[np.float32]) -> DeviceVector:
        """Uploads a small tensor in float32."""
        padded = np.zeros(vector_elements(values.size), np.float32)
        padded[: values.size] = values.reshape(-1)
        return DeviceVector(self.upload(padded), values.shape)

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> DeviceMatrix:
        """Packs and uploads a stack of weights."""
        shapes = [part.weight.shape for part in parts]
        limit = self.arena.device.info.max_storage_buffer
        asked = self.formats.stack(part.layer for part in parts)
        rows, k, form, layouts = stack_place(shapes, min_rows, asked, limit, self.layouts_of)
        places, start = [], 0
        for part in parts:
            places.append((start, len(part.weight), part.without_weight()))
            start += _padded(len(part.weight), ROUTE_ROWS)
        starts, scale = [row for row, _, _ in places], None
        if form in QUANTIZED:
            weight, scale = self._quantized(parts, starts, rows, k, form, layouts)
        else:
            weight = self._written(parts, starts, rows, k, form, layouts)
        for part in parts:
            self._tell(part.name, part.weight.size)
        return DeviceMatrix(weight, rows, k, tuple(places), parts[0].name, form, scale, layouts)

    def _written(
        self,
        parts: Sequence[Part],
        starts: Sequence[int],
        rows: int,
        k: int,
        form: DType,
        layouts: Layouts,
    ) -> BufferSlice:
        """The stack in a format, zeros where no part is; on the host it is never whole."""
        piece = self.arena.take(packed_nbytes(rows, k, form, layouts))
        placed = [
            PlacedRows(row, part.name, part.weight) for row, part in zip(starts, parts, strict=True)
        ]
        self._place(piece, rows, k, form, placed, layouts)
        return piece

    def _place(
        self,
        piece: BufferSlice,
        rows: int,
        k: int,
        form: DType,
        parts: Sequence[PlacedRows],
        layouts: Layouts = ROW_MAJOR,
    ) -> None:
        """Fills a matrix: by threads where they can, later where that is asked for."""
        rounding = self.rounding
        if rounding is not None and rounding.takes(form, [part.weight for part in parts]):
            rounding.add(piece)
            place = MatrixPlace(piece, rows, k, BF16, layouts, within=form)
        else:
            place = MatrixPlace(piece, rows, k, form, layouts)
        if not place.is_seen:
            place.fill(parts, 0, rows)
            return
        # An array that was made for this would stay in memory until then.
        made = any(isinstance(part.weight, np.ndarray) for part in parts)
        work = LaterWork() if self.later is None or made else self.later
        step = max(1, JOB_ELEMENTS // (place.step * k)) * place.step
        for first in range(0, rows, step):
            work.add(partial(place.fill, parts, first, min(first + step, rows)))
        if work is not self.later:
            work.run()

    def _quantized(
        self,
        parts: Sequence[Part],
        starts: Sequence[int],
        rows: int,
        k: int,
        form: DType,
        layouts: Layouts,
    ) -> tuple[BufferSlice, BufferSlice]:
        """Words of weights and scales; what no part fills has scale 0, and so decodes to 0."""
        wide, blocks = k * form.bits // 32, k // (2 * BLOCK)
        place = self.arena.take(packed_nbytes(rows, k, form, layouts))
        places = place, self.arena.take(U32.nbytes(rows * blocks))
        seen = [seen_as(places[0], rows, wide, U32), seen_as(places[1], rows, blocks, U32)]
        in_place = layouts == ROW_MAJOR and self.later is not None and seen[0] is not None
        work = self.later if in_place and self.later is not None else LaterWork()
        words, scales = (
            array if in_place and array is not None else np.empty((rows, columns), np.uint32)
            for array, columns in zip(seen, (wide, blocks), strict=True)
        )
        filled, step = 0, max(1, JOB_ELEMENTS // k)
        for row, part in zip(starts, parts, strict=True):
            words[filled:row] = scales[filled:row] = 0
            filled = row + len(part.weight)
            for first in range(row, filled, step):
                at = slice(first, min(first + step, filled))
                weight = part.weight[at.start - row : at.stop - row]
                job = partial(write_words, part.name, weight, form, words[at], scales[at])
                work.add(job)
        words[filled:] = scales[filled:] = 0
        if not in_place:
            work.run()
            places[0].upload(packed(words, form, layouts))
            places[1].upload(scales)
        return places

    def table(self, name: str, rows: Weight) -> DeviceMatrix:
        """Uploads an embedding table."""
        count, width = rows.shape
        form = self.formats.table
        memory = self._written_table(name, rows, form)
        self._tell(name, rows.size)
        return DeviceMatrix(memory, count, width, (), name, form)

    def _written_table(self, name: str, rows: Weight, form: DType) -> BufferSlice:
        """A table in a format, as it is."""
        count, width = rows.shape
        memory = self.arena.take(form.nbytes(rows.size))
        self._place(memory, count, width, form, [PlacedRows(0, name, rows)])
        return memory

    def _tell(self, name: str, count: int) -> None:
        """Says that a tensor is there, once it is."""
        if self.later is None:
            self.on_upload(name, count)
        else:
            self.later.tell(partial(self.on_upload, name, count))

    def upload(self, data: NDArray[np.generic]) -> BufferSlice:
        """Keeps an array as it is."""
        piece = self.arena.take(data.nbytes)
        piece.upload(data)
        return piece

    def route(self, route: NDArray[np.uint32]) -> BufferSlice:
        """Keeps the route of a product."""
        piece = self.routes.take(route.nbytes)
        piece.upload(route)
        return piece

    def close(self) -> None:
        """Releases everything."""
        self.arena.close()
        self.routes.close()


class CountedWeights(DeviceWeights):
    """Takes the memory that weights need, and never their values."""

    def _written(
        self,
        parts: Sequence[Part],
        starts: Sequence[int],
        rows: int,
        k: int,
        form: DType,
        layouts: Layouts,
    ) -> BufferSlice:
        return self.arena.take(packed_nbytes(rows, k, form, layouts))

    def _quantized(
        self,
        parts: Sequence[Part],
        starts: Sequence[int],
        rows: int,
        k: int,
        form: DType,
        layouts: Layouts,
    ) -> tuple[BufferSlice, BufferSlice]:
        words = self.arena.take(packed_nbytes(rows, k, form, layouts))
        return words, self.arena.take(2 * rows * k // BLOCK)

    def _written_table(self, name: str, rows: Weight, form: DType) -> BufferSlice:
        return self.arena.take(form.nbytes(rows.size))


def vector_elements(size: int) -> int:
    """Elements that a vector of so many takes: a bias fills whole blocks of rows."""
    return _padded(size, ROUTE_ROWS)


def stack_place(
    shapes: Sequence[tuple[int, ...]],
    min_rows: int,
    weights: DType,
    max_storage_buffer: int,
    layouts_of: LayoutsOf,
) -> tuple[int, int, DType, Layouts]:
    """(rows, k, format, layouts) of a stack of matrices on a device, padding included.

    Args:
        shapes: [rows, k] of each part.
        min_rows: the least that there must be.
        weights: the format that is asked for.
        max_storage_buffer: bytes that one binding of the device can show.
        layouts_of: how matrices are to lie in memory.
    """
    widest = max(shape[1] for shape in shapes)
    k, form = _padded(widest, K_MULTIPLE), matrix_format(weights, widest)
    rows = sum(_padded(shape[0], ROUTE_ROWS) for shape in shapes)
    rows = _padded(max(rows, min_rows), ROUTE_ROWS)
    if form.nbytes(rows * k) > max_storage_buffer:
        # It goes in pages, token by token: every token's row of outputs must be bindable.
        rows = _padded(rows, ALIGNMENT // 4)
    # Pages are whole rows, so that what may need them stays row-major.
    large = form.nbytes(rows * k) * MAX_GROWTH > max_storage_buffer
    return rows, k, form, ROW_MAJOR if large else layouts_of(form, rows, k)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def part_of(piece: BufferSlice, offset: int, nbytes: int) -> BufferSlice:
    """Some bytes of a slice."""
    return piece.buffer.slice(piece.offset + offset, nbytes)
