"""Element types of buffers and weights: their size in bits and their NumPy twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes:
        name: as written in manifests and on the command line, e.g. `bf16`.
        bits: bits per element; what q8 and nf4 say of their scales is not counted.
        numpy: name of the NumPy type that holds it on the host; bf16 is held as raw uint16, q8
            and nf4 as words of several elements (see `quantize`).
    """

    name: str
    bits: int
    numpy: str

    def __str__(self) -> str:
        return self.name

    @property
    def np(self) -> np.dtype[Any]:
        """The NumPy type, little endian."""
        return np.dtype(self.numpy)

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` tightly packed elements take, rounded up to whole bytes."""
        return (elements * self.bits + 7) // 8


F32 = DType("f32", 32, "<f4")
F16 = DType("f16", 16, "<f2")
BF16 = DType("bf16", 16, "<u2")
I8 = DType("i8", 8, "i1")
U8 = DType("u8", 8, "u1")
U32 = DType("u32", 32, "<u4")
Q8 = DType("q8", 8, "<u4")
NF4 = DType("nf4", 4, "<u4")

DTYPES: dict[str, DType] = {d.name: d for d in (F32, F16, BF16, I8, U8, U32, Q8, NF4)}
QUANTIZED = frozenset({Q8, NF4})
"""Formats in blocks that share a scale, kept in a second array: see `quantize`."""


def float_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds float32 to bfloat16 bits, nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():  # bfloat16 values already: released checkpoints are
        return (bits >> 16).astype(np.uint16)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_to_float(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widens bfloat16 bits to float32: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def encode(values: NDArray[np.float32], dtype: DType) -> NDArray[Any]:
    """Converts float32 values to the host form of `dtype` (f32, f16 or bf16)."""
    if dtype == BF16:
        return float_to_bf16(values)
    return np.ascontiguousarray(values, dtype=dtype.np)


def decode(values: NDArray[Any], dtype: DType) -> NDArray[np.float32]:
    """The float32 values behind the host form of `dtype`."""
    if dtype == BF16:
        return bf16_to_float(values.view(np.uint16))
    return np.asarray(values, dtype=np.float32)
