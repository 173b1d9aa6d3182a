"""Tensors that an adapter file holds whole: trained beside the factors, mostly small ones.

RWKV-PEFT's replace the model's. web-rwkv's are blended: alpha x + (1 - alpha) W, but a matrix that
multiplies gets alpha x added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.weights.adapters.change import Apply, Held, Rows


@dataclass(frozen=True)
class Whole:
    """W becomes keep W + part x."""

    held: Held
    keep: float = 0.0
    part: float = 1.0

    def prepare(self) -> Apply:
        """Opens the tensor: a matrix may be large, and is read row by row."""
        read, keep, part = self.held.rows(), self.keep, self.part

        def apply(old: Rows, rows: NDArray[np.intp]) -> Rows:
            new = read(rows, old.shape[1])
            return part * new + keep * old if keep else part * new

        return apply


def whole(held: Held, target: str, shape: tuple[int, ...], blend: float | None) -> Whole:
    """The change of a tensor of this shape.

    Args:
        held: what the file has; vectors may have more or fewer dimensions of one.
        target: the tensor's name.
        shape: its shape.
        blend: alpha of a file of web-rwkv; None where the tensor replaces the model's.

    Raises:
        ModelError: it has another shape.
    """
    if _thin(held.shape) != _thin(shape) or not math.prod(shape):
        raise held.misfit(target, shape, f"a tensor of its own shape, {list(shape)}")
    if blend is None:
        return Whole(held)
    multiplies = len(shape) == 2 and target.endswith(".weight")
    return Whole(held, 1.0 if multiplies else 1.0 - blend, blend)


def _thin(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without dimensions of one: vectors are stored as [C] or as [1, 1, C]."""
    return tuple(size for size in shape if size != 1)
