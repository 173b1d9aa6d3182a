"""Memory for many tensors out of few allocations: weights, state and work buffers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelforge_runtime.vk import Buffer, BufferSlice, Device

ALIGNMENT = 256
BLOCK_BYTES = 64 << 20


def reserved(nbytes: int) -> int:
    """Bytes that an arena reserves for so many."""
    return -(-max(nbytes, 16) // ALIGNMENT) * ALIGNMENT


class Arena:
    """Hands out slices of large buffers, one behind the other; all are released together.

    A tensor larger than a block gets a buffer of its own.

    Attributes:
        nbytes: taken so far.
        planned: sizes of the next blocks, from `planned_blocks`; more are of `block_bytes`.
        taken: size of every slice so far.
    """

    def __init__(self, device: Device, name: str, block_bytes: int = BLOCK_BYTES) -> None:
        self.device, self.name, self.block_bytes = device, name, block_bytes
        self.planned: list[int] = []
        self.taken: list[int] = []
        self._blocks: list[Buffer] = []
        self._open: Buffer | None = None
        self._used = 0
        self.nbytes = 0

    def take(self, nbytes: int, zero: bool = False) -> BufferSlice:
        """A slice of `nbytes` bytes, aligned to 256, filled with zeros when asked for."""
        size = reserved(nbytes)
        if size > self.block_bytes:
            whole = self.device.buffer(size, self.name)
            self._blocks.append(whole)
            piece = whole.slice(0, size)
        else:
            if self._open is None or self._used + size > self._open.nbytes:
                fits = self.planned and self.planned[0] >= size
                block = self.planned.pop(0) if fits else self.block_bytes
                self._open = self.device.buffer(block, self.name)
                self._blocks.append(self._open)
                self._used = 0
            piece = self._open.slice(self._used, size)
            self._used += size
        self.nbytes += size
        self.taken.append(size)
        if zero:
            zero_slice(piece)
        return piece

    def on(self, device: Device) -> Arena:
        """An empty arena like this one on another device."""
        return Arena(device, self.name, self.block_bytes)

    def close(self) -> None:
        """Releases every block; a second call does nothing."""
        for block in self._blocks:
            block.close()
        self._blocks, self._open, self._used, self.nbytes = [], None, 0, 0
        self.taken.clear()


def planned_blocks(taken: Sequence[int], block_bytes: int = BLOCK_BYTES) -> list[int]:
    """The blocks that an arena needs for these slices, in order, without a byte to spare."""
    blocks: list[int] = []
    for size in taken:
        if size > block_bytes:
            continue
        if blocks and blocks[-1] + size <= block_bytes:
            blocks[-1] += size
        else:
            blocks.append(size)
    return blocks


def zero_slice(piece: BufferSlice) -> None:
    """Fills a slice with zeros and waits for it."""
    piece.upload(np.zeros(piece.nbytes, dtype=np.uint8))
