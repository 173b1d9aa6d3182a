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
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import BF16, DTYPES, F16, F32, DType, decode, encode
from kernelforge_runtime.errors import ModelError

PIECE_ELEMENTS: Final = 1 << 20
"""Of one pass: a few arrays of so many elements fit a processor's cache, and the passes are so long
that threads seldom wait for the interpreter between them."""
BLOCK_ELEMENTS: Final = 1 << 18
"""Of bfloat16 on the way to float16, which takes several passes more."""
SHARED_ELEMENTS: Final = 1 << 21
"""Matrices from this size on are shared among threads."""
MOST_THREADS: Final = 4
_EXPONENT: Final = {F32: 0x7F80_0000, F16: 0x7C00, BF16: 0x7F80}
_WORD: Final[dict[DType, Any]] = {F32: np.uint32, F16: np.uint16, BF16: np.uint16}
_LEAST, _MOST = 0x3880, 0x477F  # bfloat16 bits of 2^-14 and of the last value below 65536
_LEAST_HALF = 0x400  # float16 bits of 2^-14
_TWICE_LEAST, _TWICE_SPAN = np.uint16(2 * _LEAST), np.uint16(2 * (_MOST - _LEAST))
_SIGN_BIT: Final = 0x8000
_FOUR, _HALF_LEAST, _SIGN = np.uint16(4), np.uint16(_LEAST_HALF), np.uint16(_SIGN_BIT)


class StoredMatrix:
    """A float matrix of a checkpoint that was not read yet.

    NumPy takes it for a float32 array, which is then made.

    Attributes:
        dtype: F32, F16 or BF16, as it is stored.
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
        self._raw, self.dtype, self._where = raw, DTYPES[dtype], where
        self.shape: tuple[int, ...] = raw.shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self._raw.size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> StoredMatrix:
        """Some of the rows."""
        return StoredMatrix(self._raw[rows], self.dtype.name, self._where, self._forget)

    @property
    def T(self) -> StoredMatrix:  # noqa: N802 - as of arrays
        """The transpose."""
        return StoredMatrix(self._raw.T, self.dtype.name, self._where, self._forget)

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

    def write(self, target: NDArray[Any], form: DType, within: DType | None = None) -> None:
        """Writes the matrix in a format.

        Args:
            target: of this shape and the format's NumPy type; may be memory of a device.
            form: F32, F16 or BF16.
            within: F16 where bfloat16 is to be rounded to it later.

        Raises:
            ModelError: it holds NaN or infinity, or does not fit the formats.
        """
        step = max(1, PIECE_ELEMENTS // max(1, self.shape[1]))
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        if self.size < SHARED_ELEMENTS or threads == 1:
            self._write_rows(target, form, 0, len(self), step, within)
            return
        share = -(-len(self) // (4 * threads))
        with ThreadPoolExecutor(threads) as pool:
            jobs = [
                pool.submit(self._write_rows, target, form, start, start + share, step, within)
                for start in range(0, len(self), share)
            ]
            for job in jobs:
                job.result()

    def _write_rows(
        self,
        target: NDArray[Any],
        form: DType,
        first: int,
        end: int,
        step: int,
        within: DType | None,
    ) -> None:
        for start in range(first, min(end, len(self)), step):
            rows = slice(start, min(start + step, end, len(self)))
            self._write_piece(self._raw[rows], target[rows], form, within)

    def _write_piece(
        self, raw: NDArray[Any], target: NDArray[Any], form: DType, within: DType | None
    ) -> None:
        stored, raw = self.dtype, np.ascontiguousarray(raw)
        if form == stored:
            target[...] = raw
            self._require_finite(raw, stored, within)
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

    def _require_finite(
        self, raw: NDArray[Any], stored: DType, within: DType | None = None
    ) -> None:
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
        if (
            within == F16
            and stored == BF16
            and any(value & ~_SIGN_BIT > _MOST for value in largest)
        ):
            raise ModelError(self._misfit())

    def _misfit(self) -> str:
        name = self._where.rpartition(": ")[2]
        return f"{name} does not fit f16 (a value is beyond 65504): use bf16 or f32"


class _Scratch(threading.local):
    """Arrays that a thread's pieces are worked out in: fresh ones would be zeroed each time."""

    def __init__(self) -> None:
        self._words = np.empty((2, 0), np.uint16)
        self._flags = np.empty(0, np.bool_)

    def words(self, shape: tuple[int, ...]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Two arrays of words."""
        size = math.prod(shape)
        if size > self._words.shape[1]:
            self._words = np.empty((2, size), np.uint16)
        one, two = (words[:size].reshape(shape) for words in self._words)
        return one, two

    def flags(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """An array of flags."""
        size = math.prod(shape)
        if size > len(self._flags):
            self._flags = np.empty(size, np.bool_)
        return self._flags[:size].reshape(shape)


_SCRATCH = _Scratch()


@cache
def _halves() -> NDArray[np.uint16]:
    """Float16 bits of every bfloat16, by its own bits."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond is refused, not looked up
        exact = decode(np.arange(1 << 16, dtype=np.uint16), BF16)
        return exact.astype(np.float16).view(np.uint16)


def half_of_bfloat(raw: NDArray[np.uint16], target: NDArray[np.float16]) -> bool:
    """Rounds bfloat16 bits to float16, into `target`; False where one is beyond float16.

    Most weights are normal numbers of both: their bits only move, and nothing is rounded. The few
    that are smaller than 2^-14 are looked up.

    Args:
        raw: [rows, columns], in C order.
        target: of the same shape; rows may lie apart.
    """
    odd, moved = _SCRATCH.flags(raw.shape), target.view(np.uint16)
    step = max(1, BLOCK_ELEMENTS // max(1, raw.shape[1]))
    for start in range(0, len(raw), step):
        rows = slice(start, start + step)
        _move_bits(raw[rows], moved[rows], odd[rows])
    return _look_up(raw, moved, odd)


def _move_bits(raw: NDArray[np.uint16], target: NDArray[np.uint16], odd: NDArray[np.bool_]) -> None:
    """Float16 bits of bfloat16 ones; `odd` where they are not normal numbers of float16."""
    moved, signs = _SCRATCH.words(raw.shape)
    np.add(raw, raw, out=moved)  # without the sign
    np.subtract(moved, _TWICE_LEAST, out=moved)  # of smaller ones it wraps
    np.greater(moved, _TWICE_SPAN, out=odd)
    np.multiply(moved, _FOUR, out=moved)
    np.add(moved, _HALF_LEAST, out=moved)
    np.bitwise_and(raw, _SIGN, out=signs)
    np.bitwise_or(moved, signs, out=target)


def _look_up(raw: NDArray[np.uint16], target: NDArray[np.uint16], odd: NDArray[np.bool_]) -> bool:
    """Puts right what is odd; False where it is too large."""
    # Four at a time where that is possible: odd ones are looked for longer than looked up.
    whole = raw.size % 4 == 0 and target.flags.c_contiguous
    one: Any = np.uint64 if whole else np.uint16
    where = np.flatnonzero(odd.reshape(-1).view(np.uint32) != 0 if whole else odd)
    bits = raw.reshape(-1).view(one).take(where).view(np.uint16)
    if int((bits & ~_SIGN).max(initial=0)) > _MOST:
        return False
    found = _halves().take(bits).view(one)
    if target.flags.c_contiguous:
        target.reshape(-1).view(one)[where] = found
    else:
        target[np.divmod(where, raw.shape[1])] = found
    return True
