"""Random numbers that depend on nothing but a seed and a count: the same on host and device.

Source: M. Jarzynski and M. Olano, Hash Functions for GPU Rendering, JCGT 9(3), 2020, function
pcg4d. The kernel that samples computes the same integers.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = 0xFFFFFFFF
SEED_BITS: Final = 64


def uniform(seed: int, count: int) -> float:
    """The number of this count in [0, 1), a multiple of 2^-24.

    Args:
        seed: 64 bits of it are used.
        count: from 0 up; 32 bits of it are used.
    """
    words = [seed & _MASK, seed >> 32 & _MASK, count & _MASK, 0]
    x, y, z, w = ((v * 1664525 + 1013904223) & _MASK for v in words)
    x, y, z, w = _mix(x, y, z, w)
    x, y, z, w = (v ^ v >> 16 for v in (x, y, z, w))
    return (_mix(x, y, z, w)[0] >> 8) / 2.0**24


def _mix(x: int, y: int, z: int, w: int) -> tuple[int, int, int, int]:
    x = (x + y * w) & _MASK
    y = (y + z * x) & _MASK
    z = (z + x * y) & _MASK
    w = (w + y * z) & _MASK
    return x, y, z, w
