"""Products with matrices that stay quantised: decoded a few rows at a time, on all cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.ops.vocabulary import Weight
from kernelforge_runtime.quantize import K_MULTIPLE, Quantized, dequantize, quantize
from kernelforge_runtime.stored_words import StoredWords

_AT_ONCE = 1 << 17
"""Weights decoded at once: as float32 they stay in a core's cache until they are multiplied."""


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix in memory as a device has it.

    Attributes:
        words: weights and scales, rows padded with zeros to whole words of scales.
        format: Q8 or NF4.
        shape: [rows, k] without the padding.
    """

    words: Quantized
    format: DType
    shape: tuple[int, int]

    @classmethod
    def of(cls, name: str, weight: Weight, dtype: DType) -> QuantizedRows:
        """Rounds a matrix; one that is in this format already is copied.

        Raises:
            ModelError: a weight does not fit.
        """
        rows, k = weight.shape
        if isinstance(weight, StoredWords) and weight.format == dtype:
            words = weight.words()
            return cls(Quantized(words.weight.copy(), words.scale.copy()), dtype, (rows, k))
        values = np.asarray(weight)
        padded = np.pad(values, ((0, 0), (0, -k % K_MULTIPLE))) if k % K_MULTIPLE else values
        return cls(quantize(padded, dtype, name), dtype, (rows, k))

    @property
    def nbytes(self) -> int:
        """Of weights and scales."""
        return self.words.nbytes

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Rows `first` to `last - 1`, decoded: [last - first, k]."""
        piece = slice(first, last)
        words = Quantized(self.words.weight[piece], self.words.scale[piece])
        return dequantize(words, self.format)[:, : self.shape[1]]


class Workers:
    """Threads that share the rows of a product; NumPy lets them run at once.

    A product is cut in the same places however many there are, so its result does not depend on it.
    """

    def __init__(self, threads: int | None = None) -> None:
        """Starts none yet; None takes as many as this process has cores."""
        self.threads = threads or cores()
        self._pool: ThreadPoolExecutor | None = None

    def product(self, x: NDArray[Any], matrix: QuantizedRows) -> NDArray[Any]:
        """[T, rows]: an input [T, k] times the matrix' rows, in the input's own type."""
        rows, k = matrix.shape
        out = np.empty((len(x), rows), x.dtype)
        step = max(1, _AT_ONCE // k)

        def multiply(first: int) -> None:
            last = min(first + step, rows)
            weight = matrix.rows(first, last).astype(x.dtype, copy=False)
            out[:, first:last] = x @ weight.T

        starts = range(0, rows, step)
        if self.threads == 1 or len(starts) == 1:
            for first in starts:
                multiply(first)
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, "kernelforge-product")
            for _ in self._pool.map(multiply, starts):  # raises what a thread raised
                pass
        return out

    def close(self) -> None:
        """Ends the threads; a later product starts them anew."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
