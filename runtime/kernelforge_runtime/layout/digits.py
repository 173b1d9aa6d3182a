"""The digits that an axis is counted by, and their arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kernelforge_runtime.errors import KernelForgeError


class LayoutError(KernelForgeError):
    """A layout cannot be formed, named or followed."""


class Mode(NamedTuple):
    """A digit of an axis: it counts to `extent`, and each step moves `stride` elements."""

    extent: int
    stride: int


class Place(NamedTuple):
    """A digit (index of an axis // divisor % extent) as memory nests it, and room behind it.

    It takes `extent + gap` times what is nested inside it.
    """

    axis: int
    divisor: int
    extent: int
    gap: int = 0


def step(axis: Sequence[Mode], index: int) -> int:
    """What an index of an axis adds to the offset; the slowest digit may count to any number."""
    total = 0
    for mode in reversed(axis[1:]):
        index, digit = divmod(index, mode.extent)
        total += digit * mode.stride
    return total + index * axis[0].stride


def divisors(axis: Sequence[Mode]) -> Iterable[int]:
    """Where an axis is cut: what the fastest digit counts to, the two fastest, and so on."""
    return itertools.accumulate((m.extent for m in reversed(axis)), lambda a, b: a * b)


def joined(axis: Sequence[Mode]) -> tuple[Mode, ...]:
    """Digits of an axis without those that count to 1, and neighbours made one where they can."""
    found: list[Mode] = []
    for mode in axis:
        if mode.extent == 1:
            continue
        if found and found[-1].stride == mode.extent * mode.stride:
            mode = Mode(found.pop().extent * mode.extent, mode.stride)
        found.append(mode)
    return tuple(found) or (Mode(1, 1),)


def follow(
    digits: Sequence[Mode], mode: Mode, padded: bool = False
) -> Iterable[tuple[int, int, int]]:
    """Which digits an index moves when `mode` counts it: (digit, extent, step), fastest first.

    Args:
        digits: of the index, fastest first; the last one may count to any number.
        mode: moves the index by its stride.
        padded: what is found may count further than `mode` does.

    Raises:
        LayoutError: a step is not a whole number of some digit's.
    """
    extent, stride = mode
    for at, digit in enumerate(digits[:-1]):
        if extent == 1:
            return
        if stride % digit.extent == 0:
            stride //= digit.extent
            continue
        room, left = divmod(digit.extent, stride)
        taken = min(extent, room)
        if left or (extent % taken and not padded):
            raise LayoutError(f"steps of {mode.stride} cut a digit that counts to {digit.extent}")
        yield at, taken, stride
        extent, stride = -(-extent // taken), 1
    if extent > 1:
        yield len(digits) - 1, extent, stride
