"""LoRA and PiSSA: the product of two thin matrices is added.

LoRA: W' = W + B A alpha / rank. PiSSA takes away what the factors began as, and has no alpha:
W' = W - B0 A0 + B A. A is [rank, k] and B [rows, rank].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.weights.adapters.change import Apply, Held, Rows, matrix_shape


@dataclass(frozen=True)
class LowRank:
    """Adds scale B A."""

    down: Held
    up: Held
    scale: float

    def prepare(self) -> Apply:
        """Reads both factors."""
        down, up, scale = self.down.read(), self.up.read(), self.scale

        def apply(values: Rows, rows: NDArray[np.intp]) -> Rows:
            return values + scale * (up[rows] @ down)

        return apply


def low_rank(
    down: Held, up: Held, target: str, shape: tuple[int, ...], scale: float | None
) -> LowRank:
    """A product for a tensor of this shape.

    Args:
        down: A.
        up: B.
        target: the tensor's name.
        shape: its shape.
        scale: alpha, to be divided by the rank; None adds the product as it is.

    Raises:
        ModelError: the factors do not fit.
    """
    matrix = matrix_shape(shape)
    if matrix is None:
        raise down.misfit(target, shape, "no product of two matrices")
    rows, k = matrix
    if len(down.shape) != 2 or down.shape[1] != k or not down.shape[0]:
        raise down.misfit(target, shape, _spelled(down, "rank", k))
    rank = down.shape[0]
    if up.shape != (rows, rank):
        raise up.misfit(target, shape, _spelled(up, rows, rank))
    return LowRank(down, up, 1.0 if scale is None else scale / rank)


def _spelled(held: Held, first: object, second: object) -> str:
    pair = (second, first) if held.transposed else (first, second)
    return f"[{pair[0]}, {pair[1]}]"
