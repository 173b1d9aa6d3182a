"""Weights on a Vulkan device: packed, padded and uploaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.dtypes import F16, DType, encode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.vocabulary import Part
from kernelforge_runtime.plan import Arena
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.vk import BufferSlice, Device

K_MULTIPLE = 32


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
        weight: [rows, k] in the weight format, row-major, padded with zeros.
        parts: (first row, rows, part) without the weights themselves.
    """

    weight: BufferSlice
    rows: int
    k: int
    parts: tuple[tuple[int, int, Part], ...]
    label: str


class DeviceWeights:
    """Takes a model's weights at load, in one weight format.

    Attributes:
        format: what matrices and tables are kept in; vectors stay float32.
        arena: the memory of everything that outlives a step.
    """

    def __init__(self, device: Device, weights: DType) -> None:
        self.format = weights
        self.arena = Arena(device, "weights")

    def vector(self, values: NDArray[np.float32]) -> DeviceVector:
        """Uploads a small tensor in float32."""
        padded = np.zeros(_padded(values.size, ROUTE_ROWS), np.float32)  # a bias fills whole blocks
        padded[: values.size] = values.reshape(-1)
        return DeviceVector(self.upload(padded), values.shape)

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> DeviceMatrix:
        """Packs and uploads a stack of weights."""
        k = _padded(max(p.weight.shape[1] for p in parts), K_MULTIPLE)
        places, rows = [], 0
        for part in parts:
            places.append((rows, len(part.weight), _without_weight(part)))
            rows += _padded(len(part.weight), ROUTE_ROWS)
        rows = _padded(max(rows, min_rows), ROUTE_ROWS)
        if self.format.nbytes(rows * k) > self.arena.device.info.max_storage_buffer:
            # It goes in pages, token by token: every token's row of outputs must be bindable.
            rows = _padded(rows, ALIGNMENT // 4)
        packed = np.zeros((rows, k), self.format.np)
        for (row, count, _), part in zip(places, parts, strict=True):
            packed[row : row + count, : part.weight.shape[1]] = self._encode(part.name, part.weight)
        return DeviceMatrix(self.upload(packed), rows, k, tuple(places), parts[0].name)

    def table(self, name: str, rows: NDArray[np.float32]) -> DeviceMatrix:
        """Uploads an embedding table."""
        count, width = rows.shape
        return DeviceMatrix(self.upload(self._encode(name, rows)), count, width, (), name)

    def _encode(self, name: str, weight: NDArray[np.float32]) -> NDArray[np.generic]:
        if self.format == F16:
            with np.errstate(over="ignore"):
                halves = encode(weight, F16)
            if not np.isfinite(halves).all():
                raise ModelError(
                    f"{name} does not fit f16 (a value is beyond 65504): use bf16 or f32"
                )
            return halves
        return encode(weight, self.format)

    def upload(self, data: NDArray[np.generic]) -> BufferSlice:
        """Keeps an array as it is."""
        piece = self.arena.take(data.nbytes)
        piece.upload(data)
        return piece


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def part_of(piece: BufferSlice, offset: int, nbytes: int) -> BufferSlice:
    """Some bytes of a slice."""
    return piece.buffer.slice(piece.offset + offset, nbytes)


def _without_weight(part: Part) -> Part:
    return Part(part.name, np.zeros((0, 0), np.float32), part.slot, part.column, part.activation)
