"""Tables that stay in host memory: only the rows of a step's tokens travel to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.vocabulary import LazyRows
from kernelforge_runtime.vk import Buffer, Device

MOST_TOKENS = 256
"""Of one step."""


class HostRows:
    """Tables of one shape, one per layer, and the buffer that their rows are brought in.

    Attributes:
        columns: of a step's row: all tables side by side.
    """

    def __init__(self, device: Device, tables: Sequence[LazyRows]) -> None:
        self.tables = tuple(tables)
        self.columns = sum(table.shape[1] for table in self.tables)
        self._buffer: Buffer = device.buffer(4 * MOST_TOKENS * self.columns, "rows", True)

    def tensor(self, tokens: int) -> DeviceVector:
        """[tokens, columns]."""
        memory = self._buffer.slice(0, 4 * tokens * self.columns)
        return DeviceVector(memory, (tokens, self.columns))

    def bring(self, ids: NDArray[Any]) -> None:
        """Writes the rows of these tokens; the next submit sees them."""
        view = self._buffer.view(np.float32)[: len(ids) * self.columns].reshape(len(ids), -1)
        column = 0
        for table in self.tables:
            width = table.shape[1]
            view[:, column : column + width] = table.rows(ids)
            column += width

    def close(self) -> None:
        """Releases the buffer; the tables belong to who opened their file."""
        self._buffer.close()
