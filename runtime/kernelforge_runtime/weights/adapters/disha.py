"""DiSHA, first called Bone: one small block is added all along a matrix.

With two dimensions, D [r, rows]: W'[o, j] = W[o, j] + D[j mod r, o]. With three, "bat",
D [k / r, r, r]: of W in tiles of r x r each becomes tile + tile D[c] + D[c], c its column of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.weights.adapters.change import Apply, Change, Held, Rows, matrix_shape


@dataclass(frozen=True)
class Shared:
    """Adds the same block to every group of columns."""

    block: Held

    def prepare(self) -> Apply:
        """Reads the block."""
        block = self.block.read()

        def apply(values: Rows, rows: NDArray[np.intp]) -> Rows:
            columns = np.arange(values.shape[1]) % len(block)
            return values + block[:, rows].T[:, columns]

        return apply


@dataclass(frozen=True)
class Bat:
    """Multiplies every tile with its column's block, and adds both."""

    blocks: Held

    def prepare(self) -> Apply:
        """Reads the blocks."""
        blocks = self.blocks.read()
        size = blocks.shape[-1]

        def apply(values: Rows, rows: NDArray[np.intp]) -> Rows:
            tiles = values.reshape(len(values), -1, size).swapaxes(0, 1)
            found = tiles + tiles @ blocks + blocks[:, rows % size]
            return found.swapaxes(0, 1).reshape(values.shape)

        return apply


def disha(held: Held, target: str, shape: tuple[int, ...]) -> Change:
    """The change of a tensor of this shape.

    Raises:
        ModelError: the block does not fit.
    """
    matrix = matrix_shape(shape)
    if matrix is None:
        raise held.misfit(target, shape, "no block of DiSHA")
    rows, k = matrix
    if len(held.shape) == 2 and held.shape[1] == rows and held.shape[0]:
        return Shared(held)
    if len(held.shape) == 3:
        count, height, size = held.shape
        if size and height == size and count * size == k and rows % size == 0:
            return Bat(held)
    raise held.misfit(target, shape, f"[r, {rows}], or [{k} / r, r, r]")
