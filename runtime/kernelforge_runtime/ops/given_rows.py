"""Vectors in place of tokens: rows that the host gives where a step would read the embedding's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.vk import Buffer, Device

MOST_TOKENS = 256
"""Of one step."""


class GivenRows:
    """The buffer that a step's vectors are brought in, in the type of the residual stream."""

    def __init__(self, device: Device, width: int, activations: DType) -> None:
        self._width, self._form = width, activations
        size = activations.bits // 8 * MOST_TOKENS * width
        self._buffer: Buffer = device.buffer(size, "vectors", True)

    def tensor(self, tokens: int) -> DeviceVector:
        """[tokens, C]."""
        bits = self._form.bits
        memory = self._buffer.slice(0, bits // 8 * tokens * self._width)
        return DeviceVector(memory, (tokens, self._width), bits)

    def bring(self, rows: NDArray[np.float32], tokens: int) -> None:
        """Writes vectors [T, C]; the step's other tokens are zero."""
        view = self._buffer.view(self._form.np)[: tokens * self._width].reshape(tokens, -1)
        view[: len(rows)] = rows
        view[len(rows) :] = 0

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
