"""Vectors among a step's tokens: rows that the host gives where it would read the embedding's.

The buffer takes the place of the embedding's result. The host writes the vectors' rows, the kernel
those of the tokens: a vector's id is in no table, and the kernel leaves such a row as it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.plan.arena import reserved
from kernelforge_runtime.vk import Buffer, Device

MOST_TOKENS = 256
"""Of one step."""
HALVES = 2
"""A step reads one half while the host writes the next step's vectors into the other."""
GIVEN = 0xFFFFFFFE
"""The id of a vector. Not the last one of 32 bits: a row without a token becomes zeros."""


class GivenRows:
    """The buffer, in the type of the residual stream; owns device memory."""

    def __init__(self, device: Device, width: int, activations: DType) -> None:
        self._width, self._form = width, activations
        self._half = reserved(activations.bits // 8 * MOST_TOKENS * width)
        self._buffer: Buffer = device.buffer(HALVES * self._half, "vectors", True)

    def tensor(self, tokens: int, half: int = 0) -> DeviceVector:
        """[tokens, C]."""
        bits = self._form.bits
        memory = self._buffer.slice(half * self._half, bits // 8 * tokens * self._width)
        return DeviceVector(memory, (tokens, self._width), bits)

    def bring(self, half: int, ids: NDArray[np.uint32], rows: NDArray[np.float32]) -> None:
        """Writes a step's vectors [n, C] to where its ids [T] are GIVEN; the next submit sees them.

        No such step of this half may be running.
        """
        start = half * self._half // (self._form.bits // 8)
        view = self._buffer.view(self._form.np)[start : start + len(ids) * self._width]
        view.reshape(len(ids), -1)[ids == GIVEN] = rows

    def close(self) -> None:
        """Releases the buffer."""
        self._buffer.close()


def refuse_vectors(given: bool) -> None:
    """Raises ModelError where a step has vectors, for ops that need the ids of tokens."""
    if given:
        raise ModelError(
            "vectors were given, but this model reads more of a token than its embedding (a table "
            "by id, or the history of ids): give it tokens"
        )
