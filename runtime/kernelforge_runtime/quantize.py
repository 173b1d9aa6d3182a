"""Weights in 8 or 4 bits: blocks of 32 along a row that share one float16 scale.

q8   scale = absmax / 127; byte = round(w / scale) + 128; four per word, the lowest byte first.
nf4  scale = absmax; the nearest of 16 levels to w / scale; eight per word, the lowest bits first.

Encoding what was decoded gives the same words: the largest weight of a block always decodes to the
largest value that its scale can express. For that, scales in float16's subnormal range, where one
step is a large part of the scale, are rounded down where rounding to nearest would break it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F16, NF4, Q8, QUANTIZED, DType
from kernelforge_runtime.errors import ModelError

BLOCK: Final = 32
K_MULTIPLE: Final = 2 * BLOCK
"""Rows are whole words of scales, two blocks each."""

NF4_LEVELS: Final[NDArray[np.float32]] = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""Quantiles of a normal distribution, zero among them.

Source: Dettmers et al., QLoRA (arXiv 2305.14314), appendix E.
"""

_MIDDLES: Final = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
_PAIRS: Final = np.stack(
    [np.tile(NF4_LEVELS, 16), np.repeat(NF4_LEVELS, 16)], -1
)  # both weights of a byte, by the byte
_SMALLEST_NORMAL: Final = np.float16(2.0**-14)
_AT_ONCE: Final = 1 << 17
"""Weights per pass: float32 temporaries of this many stay in a core's cache."""


class Rows(Protocol):
    """A matrix that gives float32 rows when they are asked for, as arrays do."""

    shape: tuple[int, ...]

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Quantized:
    """A quantised matrix.

    Attributes:
        weight: u32 [M, words], 4 (q8) or 8 (nf4) weights per word.
        scale: u32 [M, K/64], the scales of blocks 2j (low half) and 2j+1 as float16.
    """

    weight: NDArray[np.uint32]
    scale: NDArray[np.uint32]

    @property
    def nbytes(self) -> int:
        """Of weights and scales together."""
        return self.weight.nbytes + self.scale.nbytes


def quantize(values: Rows, dtype: DType, name: str = "a matrix") -> Quantized:
    """Rounds a matrix [M, K] to q8 or nf4.

    Args:
        values: K is a multiple of 64; taken a few rows at a time.
        dtype: Q8 or NF4.
        name: of the matrix, for the message.

    Raises:
        ModelError: a value is not finite, or too large for a float16 scale.
        ValueError: K is no multiple of 64, or the format is another.
    """
    rows, k = values.shape
    if k % K_MULTIPLE:
        raise ValueError(f"rows of {k} weights: {dtype} asks for a multiple of {K_MULTIPLE}")
    encode = _encoder(dtype)
    weight = np.empty((rows, k * dtype.bits // 32), np.uint32)
    scale = np.empty((rows, k // BLOCK), np.float16)
    step = max(1, _AT_ONCE // max(k, 1))
    for row in range(0, rows, step):
        piece = slice(row, min(row + step, rows))
        blocks = np.ascontiguousarray(values[piece], np.float32).reshape(-1, BLOCK)
        scales, words = encode(blocks)
        if not np.isfinite(scales).all():
            limit = 65504 * (127 if dtype == Q8 else 1)
            raise ModelError(
                f"{name} does not fit {dtype} (a value is beyond {limit}, or no number)"
            )
        weight[piece] = words.reshape(-1, weight.shape[1])
        scale[piece] = scales.reshape(-1, scale.shape[1])
    return Quantized(weight, scale.view(np.uint32))


def dequantize(quantized: Quantized, dtype: DType) -> NDArray[np.float32]:
    """The float32 matrix [M, K] behind it.

    Raises:
        ValueError: the format is neither q8 nor nf4.
    """
    _encoder(dtype)
    rows, words = quantized.weight.shape
    data = np.ascontiguousarray(quantized.weight).view(np.uint8)
    if dtype == Q8:
        # byte - 128, as a signed byte
        values = (data ^ np.uint8(0x80)).view(np.int8).astype(np.float32)
    else:
        values = _PAIRS.view(np.complex64).reshape(-1)[data].view(np.float32)
    scale = np.ascontiguousarray(quantized.scale).view(np.float16).astype(np.float32)
    blocks = values.reshape(rows, -1, BLOCK)
    with np.errstate(invalid="ignore"):  # a damaged file's scales
        blocks *= scale[:, :, None]
    return blocks.reshape(rows, words * 32 // dtype.bits)


def matrix_format(weights: DType, k: int) -> DType:
    """What a model's matrix with rows of `k` weights is kept in.

    Rows that are no whole words of scales stay float16: second halves of low-rank factors, which
    are small, and tiny models.
    """
    return F16 if weights in QUANTIZED and k % K_MULTIPLE else weights


def table_format(weights: DType) -> DType:
    """What a model's embedding tables are kept in: of a table a step reads a few rows only."""
    return F16 if weights in QUANTIZED else weights


_Encoded = tuple[NDArray[np.float16], NDArray[np.uint32]]


def _encoder(dtype: DType) -> Any:
    if dtype not in (Q8, NF4):
        raise ValueError(f"{dtype} has no blocks: there are q8 and nf4")
    return _encode_q8 if dtype == Q8 else _encode_nf4


def _encode_q8(blocks: NDArray[np.float32]) -> _Encoded:
    """Scales [blocks] and words [blocks, 8]."""
    top = np.abs(blocks).max(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # not finite: refused by the caller
        scale = (top / np.float32(127)).astype(np.float16)
        # What the largest weight decodes to must lead to this scale again.
        largest = np.minimum(np.rint(_over(top, scale)), 127) * scale.astype(np.float32)
        scale = np.minimum(scale, (largest / np.float32(127)).astype(np.float16))
    steps = _over(blocks, scale[:, None])
    np.rint(steps, out=steps)
    np.clip(steps, -127, 127, out=steps)
    steps += 128
    with np.errstate(invalid="ignore"):
        return scale, steps.astype(np.uint8).view(np.uint32)


def _encode_nf4(blocks: NDArray[np.float32]) -> _Encoded:
    """Scales [blocks] and words [blocks, 4]."""
    top = np.abs(blocks).max(-1)
    with np.errstate(over="ignore"):
        scale = top.astype(np.float16)
    down = (scale < _SMALLEST_NORMAL) & (scale.astype(np.float32) > top)
    scale = np.where(down, np.nextafter(scale, np.float16(0)), scale)
    part = _over(blocks, scale[:, None])
    level = np.zeros(part.shape, np.uint8)
    for middle in _MIDDLES:  # fifteen comparisons are vector code, a search is not
        level += part > middle
    return scale, (level[:, 0::2] | (level[:, 1::2] << 4)).view(np.uint32)


def _over(values: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """The quotient; 0 where the scale is."""
    wide = scale.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.divide(values, np.where(wide == 0, np.float32(np.inf), wide))
