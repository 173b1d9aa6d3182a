"""Inputs of products rounded to int8: blocks of 32 along a row that share one float32 step.

step = absmax / 127 and q = round(x / step), to the last bit as templates/gemv_dot rounds them. A
quotient of floats is not the same on every device, and where it differs a whole step is lost, so
it is one of whole numbers: of a block's largest magnitude the upper 16 bits of the mantissa,
rounded up, say what x is multiplied by. That makes the step at most 2^-15 of itself too large.
Blocks below 2^-111 are zero; in a block with an infinity or NaN the step is NaN.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.quantize import BLOCK

_SMALLEST: Final = 16
_MANTISSA: Final = np.uint32(0x7FFFFF)
_PART: Final = np.float32(1 / 127)


def round_blocks(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(q, step): x is about q times its block's step.

    Args:
        x: [..., K] in float16 or float32; K is a multiple of 32.

    Returns:
        int8 [..., K] from -127 to 127, and float32 [..., K / 32].

    Raises:
        ValueError: K is no multiple of 32.
    """
    if x.shape[-1] % BLOCK:
        raise ValueError(f"rows of {x.shape[-1]} inputs: a multiple of {BLOCK} is needed")
    blocks = np.ascontiguousarray(x, np.float32).reshape(*x.shape[:-1], -1, BLOCK)
    most = (blocks.view(np.uint32) & np.uint32(0x7FFFFFFF)).max(-1)
    exponent = (most >> np.uint32(23)).astype(np.int32)
    top = ((most & _MANTISSA | np.uint32(0x800000)) + np.uint32(255)) >> np.uint32(8)
    used = (exponent >= _SMALLEST) & (exponent < 255)
    shift = np.where(used, exponent, 127)
    quotient = (np.uint32(127 << 24) // top).astype(np.float32)
    up = np.where(used, np.ldexp(quotient, 118 - shift), np.float32(0))
    step = np.where(used, np.ldexp(top.astype(np.float32) * _PART, shift - 142), np.float32(0))
    step = np.where(exponent == 255, np.float32(np.nan), step).astype(np.float32)
    with np.errstate(invalid="ignore"):
        scaled = np.rint(blocks * up.astype(np.float32)[..., None])
        q = np.where(np.isfinite(scaled), scaled, 0).astype(np.int8)
    return q.reshape(x.shape), step


def rounded_values(x: NDArray[Any]) -> NDArray[np.float32]:
    """What is left of x: q times step, float32 of the same shape."""
    q, step = round_blocks(x)
    blocks = q.reshape(*step.shape, BLOCK).astype(np.float32)
    return (blocks * step[..., None]).reshape(x.shape)
