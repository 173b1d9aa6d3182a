"""Recurrent state on a device: every kind of it for a number of sequences, each in a slot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.vk import Buffer, BufferSlice, Device


class DeviceState:
    """Entries of one kind of state, [entries][slots][*shape]; entries start where a binding may.

    Attributes:
        memory: all entries, one behind the other.
        entries: how many.
        slots: sequences that an entry holds.
        shape: of one sequence's part of an entry.
    """

    def __init__(
        self,
        device: Device,
        name: str,
        entries: int,
        slots: int,
        shape: tuple[int, ...],
        dtype: DType,
    ) -> None:
        self.entries, self.slots, self.shape, self.dtype = entries, slots, shape, dtype
        self._buffer: Buffer = device.buffer(entries * self.entry_bytes, name)
        self._buffer.fill(0)
        self.memory: BufferSlice = self._buffer.slice(0, self._buffer.nbytes)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one sequence in one entry."""
        return 4 * math.prod(self.shape)

    @property
    def entry_bytes(self) -> int:
        """Bytes from one entry to the next."""
        return -(-self.slots * self.slot_bytes // ALIGNMENT) * ALIGNMENT

    def entry(self, index: int) -> BufferSlice:
        """One entry's memory, of all slots."""
        return self._buffer.slice(index * self.entry_bytes, self.entry_bytes)

    def write(self, slot: int, values: NDArray[Any]) -> None:
        """Uploads one sequence's entries, [entries, *shape]; a shorter last axis is padded."""
        missing = self.shape[-1] - values.shape[-1]
        if missing:
            values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
        values = np.ascontiguousarray(values, self.dtype.np)
        for index in range(self.entries):
            self._buffer.upload(values[index], self._offset(index, slot))

    def read(self, slot: int) -> NDArray[Any]:
        """Downloads one sequence's entries, [entries, *shape]."""
        parts = [
            self._buffer.download(self.dtype.np, self.shape, self._offset(index, slot))
            for index in range(self.entries)
        ]
        return np.stack(parts)

    def _offset(self, index: int, slot: int) -> int:
        return index * self.entry_bytes + slot * self.slot_bytes

    @property
    def nbytes(self) -> int:
        """Device memory, in bytes."""
        return self._buffer.nbytes

    def close(self) -> None:
        """Releases the memory."""
        self._buffer.close()
