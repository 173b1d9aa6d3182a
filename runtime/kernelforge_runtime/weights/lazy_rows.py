"""A table that stays in its file: for embeddings of gigabytes of which a step needs a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType, decode


class LazyRows:
    """Rows of a mapped 2-D float tensor, decoded when asked for.

    Holds the file's mapping until freed; the checkpoint it came from may be closed.
    """

    def __init__(self, stored: NDArray[Any], dtype: DType) -> None:
        """Takes a view of the mapping.

        Args:
            stored: [V, columns] as in the file, bf16 as uint16.
            dtype: its format: F32, F16 or BF16.
        """
        self._stored, self._dtype = stored, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """[V, columns]."""
        return self._stored.shape

    @property
    def dtype(self) -> DType:
        """The stored format."""
        return self._dtype

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """These rows in float32, [len(ids), columns]; reads nothing else of the file.

        Args:
            ids: whole numbers from 0 to V - 1, [n].
        """
        return decode(self._stored[ids], self._dtype)
