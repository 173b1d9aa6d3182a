"""A matrix as its file has it: brought into the device's format in one pass, piece by piece.

Going through a float32 copy of a model takes several times as long as reading its file; pieces that
stay in the processor's cache do not.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import BF16, DTYPES, F16, F32, DType, decode, encode
from kernelforge_runtime.errors import ModelError

PIECE_ELEMENTS: Final = 1 << 19
"""Of one pass: a few arrays of so many elements fit a processor's cache, and the passes are so long
that threads seldom wait for the interpreter between them."""
SHARED_ELEMENTS: Final = 1 << 21
"""Matrices from this size on are shared among threads."""
MOST_THREADS: Final = 4
_EXPONENT: Final = {F32: 0x7F80_0000, F16: 0x7C00, BF16: 0x7F80}
_WORD: Final[dict[DType, Any]] = {F32: np.uint32, F16: np.uint16, BF16: np.uint16}
_LEAST, _MOST = 0x3880, 0x477F  # bfloat16 bits of 2^-14 and of the last value below 65536
_LEAST_HALF = 0x400  # float16 bits of 2^-14
_TWICE_LEAST, _TWICE_SPAN = np.uint16(2 * _LEAST), np.uint16(2 * (_MOST - _LEAST))
_FOUR, _HALF_LEAST, _SIGN = np.uint16(4), np.uint16(_LEAST_HALF), np.uint16(0x8000)
_SIXTEEN = np.uint32(16)


class StoredMatrix:
    """A float matrix of a checkpoint that was not read yet.

    NumPy takes it for a float32 array, which is then made.

    Attributes:
        shape: [rows, columns].
    """

    def __init__(
        self,
        raw: NDArray[Any],
        dtype: str,
        where: str,
        forget: Callable[[NDArray[Any]], None] = lambda raw: None,
    ) -> None:
        """A view of the file.

        Args:
            raw: elements as stored, bf16 as uint16.
            dtype: "f32", "f16" or "bf16".
            where: file and tensor, for messages.
            forget: told of elements that will hardly be asked for again.
        """
        self._forget = forget
        self._raw, self._dtype, self._where = raw, DTYPES[dtype], where
        self.shape: tuple[int, ...] = raw.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._raw.size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> StoredMatrix:
        """Some of the rows."""
        return StoredMatrix(self._raw[rows], self._dtype.name, self._where, self._forget)

    @property
    def T(self) -> StoredMatrix:  # noqa: N802 - as of arrays
        """The transpose."""
        return StoredMatrix(self._raw.T, self._dtype.name, self._where, self._forget)

    def __array__(
        self, dtype: Any = None, copy: bool | None = None
    ) -> NDArray[Any]:  # NumPy's protocol
        return self.values().astype(dtype or np.float32, copy=False)

    def values(self) -> NDArray[np.float32]:
        """All of it in float32, exactly.

        Raises:
            ModelError: it holds NaN or infinity.
        """
        found = np.empty(self.shape, np.float32)
        self.write(found, F32)
        self.forget()
        return found

    def forget(self) -> None:
        """Says that it was written and will hardly be asked for again."""
        self._forget(self._raw)

    def write(self, target: NDArray[Any], form: DType) -> None:
        """Writes the matrix in a format.

        Args:
            target: of this shape and the format's NumPy type; may be memory of a device.
            form: F32, F16 or BF16.

        Raises:
            ModelError: it holds NaN or infinity, or does not fit the format.
        """
        step = max(1, PIECE_ELEMENTS // max(1, self.shape[1]))
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        if self.size < SHARED_ELEMENTS or threads == 1:
            self._write_rows(target, form, 0, len(self), step)
            return
        share = -(-len(self) // (4 * threads))
        with ThreadPoolExecutor(threads) as pool:
            jobs = [
                pool.submit(self._write_rows, target, form, start, start + share, step)
                for start in range(0, len(self), share)
            ]
            for job in jobs:
                job.result()

    def _write_rows(
        self, target: NDArray[Any], form: DType, first: int, end: int, step: int
    ) -> None:
        for start in range(first, min(end, len(self)), step):
            rows = slice(start, min(start + step, end, len(self)))
            self._write_piece(self._raw[rows], target[rows], form)

    def _write_piece(self, raw: NDArray[Any], target: NDArray[Any], form: DType) -> None:
        stored, raw = self._dtype, np.ascontiguousarray(raw)
        if form == stored:
            target[...] = raw
            self._require_finite(raw, stored)
        elif stored == BF16 and form == F16:
            if not half_of_bfloat(raw, target):
                self._require_finite(raw, stored)
                raise ModelError(self._misfit())
        else:
            self._require_finite(raw, stored)
            with np.errstate(over="ignore"):
                found = encode(decode(raw, stored), form)
            if form == F16 and not np.isfinite(found).all():
                raise ModelError(self._misfit())
            target[...] = found

    def _require_finite(self, raw: NDArray[Any], stored: DType) -> None:
        word = np.dtype(_WORD[stored])
        mask = _EXPONENT[stored]
        # Of positive values the largest is the signed maximum, of negative ones the unsigned one:
        # two passes that make nothing.
        bits = raw.view(word)
        largest = int(bits.max(initial=0)), int(bits.view(f"i{word.itemsize}").max(initial=0))
        if any(value & mask == mask for value in largest):
            raise ModelError(
                f"{self._where} holds NaN or infinite weights; "
                "the file is damaged or its training diverged"
            )

    def _misfit(self) -> str:
        name = self._where.rpartition(": ")[2]
        return f"{name} does not fit f16 (a value is beyond 65504): use bf16 or f32"


class _Scratch(threading.local):
    """Arrays that a thread's pieces are worked out in: fresh ones would be zeroed each time."""

    def __init__(self) -> None:
        self._words = np.empty((2, 0), np.uint16)
        self._flags = np.empty(0, np.bool_)

    def of(
        self, shape: tuple[int, ...]
    ) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.bool_]]:
        """Two arrays of words and one of flags."""
        size = math.prod(shape)
        if size > len(self._flags):
            self._words, self._flags = np.empty((2, size), np.uint16), np.empty(size, np.bool_)
        one, two = (words[:size].reshape(shape) for words in self._words)
        return one, two, self._flags[:size].reshape(shape)


_SCRATCH = _Scratch()


def half_of_bfloat(raw: NDArray[np.uint16], target: NDArray[np.float16]) -> bool:
    """Rounds bfloat16 bits to float16, into `target`; False where one is beyond float16.

    Most weights are normal numbers of both: their bits only move, and nothing is rounded. What is
    smaller than 2^-14 goes through float32.

    Args:
        raw: [rows, columns], at least one column.
        target: of the same shape.
    """
    moved, signs, odd = _SCRATCH.of(raw.shape)
    np.add(raw, raw, out=moved)  # without the sign
    np.subtract(moved, _TWICE_LEAST, out=moved)  # of smaller ones it wraps
    np.greater(moved, _TWICE_SPAN, out=odd)
    np.multiply(moved, _FOUR, out=moved)
    np.add(moved, _HALF_LEAST, out=moved)
    np.bitwise_and(raw, _SIGN, out=signs)
    np.bitwise_or(moved, signs, out=target.view(np.uint16))
    where = np.flatnonzero(odd)
    if not len(where):
        return True
    bits = raw.reshape(-1)[where]
    if int((bits & 0x7FFF).max()) > _MOST:
        return False
    found = (bits.astype(np.uint32) << _SIXTEEN).view(np.float32).astype(np.float16)
    if target.flags.c_contiguous:
        target.reshape(-1)[where] = found
    else:
        target[np.divmod(where, raw.shape[1])] = found
    return True
