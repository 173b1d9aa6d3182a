"""A quantised matrix as its file has it: taken word for word where a model keeps it so.

Decoding it and rounding it anew would give the same words, and take most of the time of loading.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import Quantized, dequantize


class StoredWords:
    """A q8 or nf4 matrix of a checkpoint that was not read yet.

    NumPy takes it for a float32 array, which is then decoded.

    Attributes:
        format: Q8 or NF4.
        shape: [rows, columns] of the matrix that the words stand for.
    """

    def __init__(self, words: Quantized, form: DType, where: str) -> None:
        """A view of the file.

        Args:
            words: weights and scales as stored.
            form: Q8 or NF4.
            where: file and tensor, for messages.
        """
        self._words, self.format, self._where = words, form, where
        rows, count = words.weight.shape
        self.shape: tuple[int, ...] = rows, count * 32 // form.bits

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> StoredWords:
        """Some of the rows."""
        words = Quantized(self._words.weight[rows], self._words.scale[rows])
        return StoredWords(words, self.format, self._where)

    @property
    def T(self) -> NDArray[np.float32]:  # noqa: N802 - as of arrays
        """The transpose: decoded, as words stand side by side in rows only."""
        return np.asarray(self, np.float32).T

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> NDArray[Any]:  # NumPy's protocol
        return dequantize(self.words(), self.format).astype(dtype or np.float32, copy=False)

    def words(self) -> Quantized:
        """Weights and scales without a copy.

        Raises:
            ModelError: a scale is NaN or infinite.
        """
        if not np.isfinite(np.ascontiguousarray(self._words.scale).view(np.float16)).all():
            raise ModelError(
                f"{self._where} holds NaN or infinite weights; "
                "the file is damaged or its training diverged"
            )
        return self._words
