"""Memory for many tensors out of few allocations: weights, state and work buffers of a model."""

from __future__ import annotations

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
    """

    def __init__(self, device: Device, name: str, block_bytes: int = BLOCK_BYTES) -> None:
        self.device, self.name, self.block_bytes = device, name, block_bytes
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
                self._open = self.device.buffer(self.block_bytes, self.name)
                self._blocks.append(self._open)
                self._used = 0
            piece = self._open.slice(self._used, size)
            self._used += size
        self.nbytes += size
        if zero:
            zero_slice(piece)
        return piece

    def close(self) -> None:
        """Releases every block; a second call does nothing."""
        for block in self._blocks:
            block.close()
        self._blocks, self._open, self._used, self.nbytes = [], None, 0, 0


def zero_slice(piece: BufferSlice) -> None:
    """Fills a slice with zeros and waits for it."""
    piece.upload(np.zeros(piece.nbytes, dtype=np.uint8))
