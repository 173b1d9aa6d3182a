"""Weights on a Vulkan device: packed, padded and uploaded once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.dtypes import F16, QUANTIZED, DType, encode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.vocabulary import Part, Weight
from kernelforge_runtime.ops.weight_layout import MAX_GROWTH, ROW_MAJOR, packed, packed_nbytes
from kernelforge_runtime.plan import Arena
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.quantize import BLOCK, matrix_format, quantize
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.vk import BufferSlice, Device
from kernelforge_runtime.weight_formats import WeightFormats

K_MULTIPLE = 32
ROUTE_BLOCK_BYTES = 1 << 16
AT_ONCE = 1 << 21
"""Weights that are packed at a time where they are not written in place."""
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
            self.on_upload(part.name, part.weight.size)
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
        """The stack in a format, zeros where no part is.

        In place where the host can see it, else a few rows at a time: on the host a matrix is never
        whole, but in layouts that need all of it.
        """
        piece = self.arena.take(packed_nbytes(rows, k, form, layouts))
        seen = _seen(piece, rows, k, form) if layouts == ROW_MAJOR else None
        step = rows if seen is not None else rows_at_once(rows, k, form, layouts)
        for first in range(0, rows, step):
            end = min(first + step, rows)
            plain = seen if seen is not None else np.empty((end - first, k), form.np)
            filled = 0
            for row, part in zip(starts, parts, strict=True):
                low, high = max(first, row), min(end, row + len(part.weight))
                if low >= high:
                    continue
                target, width = plain[low - first : high - first], part.weight.shape[1]
                plain[filled : low - first] = 0
                _write(part.name, part.weight[low - row : high - row], target[:, :width], form)
                target[:, width:] = 0
                filled = high - first
            plain[filled:] = 0
            if seen is None:
                at = piece.offset + form.nbytes(first * k)
                piece.buffer.upload(packed(plain, form, layouts), at)
        return piece

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
        words = np.zeros((rows, k * form.bits // 32), np.uint32)
        scales = np.zeros((rows, k // (2 * BLOCK)), np.uint32)
        for row, part in zip(starts, parts, strict=True):
            count, width = part.weight.shape
            step = max(1, AT_ONCE // k)
            for first in range(0, count, step):
                piece = np.asarray(part.weight[first : first + step])
                piece = np.pad(piece, ((0, 0), (0, k - width))) if width < k else piece
                found = quantize(piece, form, part.name)
                at = slice(row + first, row + first + len(piece))
                words[at], scales[at] = found.weight, found.scale
        return self.upload(packed(words, form, layouts)), self.upload(scales)

    def table(self, name: str, rows: Weight) -> DeviceMatrix:
        """Uploads an embedding table."""
        count, width = rows.shape
        form = self.formats.table
        memory = self._written_table(name, rows, form)
        self.on_upload(name, rows.size)
        return DeviceMatrix(memory, count, width, (), name, form)

    def _written_table(self, name: str, rows: Weight, form: DType) -> BufferSlice:
        """A table in a format, as it is."""
        count, width = rows.shape
        memory = self.arena.take(form.nbytes(rows.size))
        seen = _seen(memory, count, width, form)
        if seen is not None:
            _write(name, rows, seen, form)
            return memory
        step = max(1, AT_ONCE // width)
        for first in range(0, count, step):
            plain = np.empty((min(step, count - first), width), form.np)
            _write(name, rows[first : first + step], plain, form)
            memory.buffer.upload(plain, memory.offset + form.nbytes(first * width))
        return memory

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


def rows_at_once(rows: int, k: int, form: DType, layouts: Layouts) -> int:
    """Rows that can be packed without the others: a few whose memory is one piece, or all."""
    tall = 1
    if layouts:
        found = re.match(r"M/([0-9]+) ", layouts[0][1])
        if found is None or packed_nbytes(rows, k, form, layouts) != form.nbytes(rows * k):
            return rows
        tall = int(found[1])
    least = math.lcm(tall, ROUTE_ROWS)
    return max(1, AT_ONCE // (least * k)) * least if rows % tall == 0 else rows


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


def _seen(piece: BufferSlice, rows: int, k: int, form: DType) -> NDArray[np.generic] | None:
    """Device memory as [rows, k]; None where the host cannot see it."""
    mapped = piece.buffer.mapped
    if mapped is None:
        return None
    found = mapped[piece.offset : piece.offset + form.nbytes(rows * k)].view(form.np)
    return found.reshape(rows, k)


def _write(name: str, weight: Weight, target: NDArray[np.generic], form: DType) -> None:
    if isinstance(weight, StoredMatrix):
        weight.write(target, form)
    else:
        target[...] = _encode(name, weight, form)


def _encode(name: str, weight: NDArray[np.float32], form: DType) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        encoded = encode(weight, form)
    if form == F16 and not np.isfinite(encoded).all():
        raise ModelError(f"{name} does not fit f16 (a value is beyond 65504): use bf16 or f32")
    return encoded
