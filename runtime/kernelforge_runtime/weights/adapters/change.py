"""What an adapter does to one tensor of a model: in float64, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.checkpoint import FLOATS, Checkpoint

Rows = NDArray[np.float64]
Apply = Callable[[Rows, NDArray[np.intp]], Rows]
"""(rows of the tensor [n, k], their numbers [n]) -> what becomes of them [n, k]."""


class Change(Protocol):
    """One change of one tensor, which is taken as [rows, k]: k is its last dimension."""

    def prepare(self) -> Apply:
        """Reads what it needs; valid after its file was closed."""


@dataclass(frozen=True)
class Held:
    """A tensor of an adapter file.

    Attributes:
        transposed: whether the file has the last two dimensions the other way round.
    """

    checkpoint: Checkpoint
    name: str
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model would have it."""
        found = self.checkpoint.shape(self.name)
        if self.transposed and len(found) > 1:
            return (*found[:-2], found[-1], found[-2])
        return found

    def read(self) -> Rows:
        """The values.

        Raises:
            ModelError: they are no floats, or not finite.
        """
        values = self._finite(self.checkpoint.tensor(self.name))
        return values.swapaxes(-1, -2) if self.transposed and values.ndim > 1 else values

    def rows(self) -> Callable[[NDArray[np.intp], int], Rows]:
        """Reads rows of the tensor taken as [rows, columns]: their numbers, and how many columns.

        A matrix stays in its file until then, and may be read after that was closed.
        """
        lazy = len(self.shape) == 2 and not self.transposed
        if lazy and self.checkpoint.dtype(self.name) in FLOATS:
            table = self.checkpoint.lazy_rows(self.name)
            return lambda rows, columns: self._finite(table.rows(rows))
        values = self.read()
        return lambda rows, columns: values.reshape(-1, columns)[rows]

    def _finite(self, values: NDArray[np.float32]) -> Rows:
        if not np.isfinite(values).all():
            raise ModelError(f"adapter {self.checkpoint.path}: {self.name} holds NaN or infinity")
        return values.astype(np.float64)

    def misfit(self, target: str, shape: tuple[int, ...], wanted: str) -> ModelError:
        """What to raise where it does not fit a tensor of the model."""
        return ModelError(
            f"adapter {self.checkpoint.path}: {self.name} has shape "
            f"{list(self.checkpoint.shape(self.name))}, but {target} {list(shape)} takes {wanted}: "
            "it is of a model of another size"
        )


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """[rows, k] of a matrix; None of anything else."""
    return (shape[0], shape[1]) if len(shape) == 2 else None
