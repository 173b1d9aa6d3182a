"""Moves a tensor's elements from one layout to another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.layout.digits import LayoutError, Mode, divisors, step
from kernelforge_runtime.layout.layout import Layout

_GATHER = 1 << 20
"""Elements whose places are held at a time."""


def transform(array: NDArray[Any], source: Layout, target: Layout, fill: float = 0) -> NDArray[Any]:
    """Moves a tensor from one layout to another.

    >>> transform(np.arange(6), Layout.row_major((2, 3)), Layout.column_major((2, 3))).tolist()
    [0, 3, 1, 4, 2, 5]

    Args:
        array: the memory of `source`, of any element type and shape, in C order.
        source: where elements are.
        target: where they go; what it pads is filled.
        fill: what the padding and the gaps of `target` hold.

    Returns:
        The memory of `target`, [target.cosize], of the same element type.

    Raises:
        LayoutError: the shapes differ, the array is too small, or elements would collide.
    """
    if source.shape != target.shape:
        raise LayoutError(f"a tensor {source.shape} cannot take the layout of {target.shape}")
    if array.size < source.cosize:
        raise LayoutError(f"{array.size} elements; the layout reaches {source.cosize}")
    if not target.is_injective():
        raise LayoutError(f"{target}: several elements share a place")
    memory = np.ascontiguousarray(array).reshape(-1)
    out = np.full(target.cosize, fill, memory.dtype)
    runs = [
        _common_runs(size, s, t)
        for size, s, t in zip(source.shape, source.axes, target.axes, strict=True)
    ]
    if not all(runs):
        _gather(memory, source, out, target)
        return out
    for combination in itertools.product(*runs):
        digits = [digit for run in combination for digit in run.digits]
        extents = tuple(extent for extent, _, _ in digits)
        views = []
        for which, data in ((0, memory), (1, out)):
            start = sum(run.starts[which] for run in combination)
            strides = tuple(digit[1 + which] * memory.itemsize for digit in digits)
            views.append(np.lib.stride_tricks.as_strided(data[start:], extents, strides))
        views[1][...] = views[0]
    return out


class _Run(NamedTuple):
    """Indices of an axis that both layouts count by the same digits (extent, stride, stride)."""

    starts: tuple[int, int]
    digits: list[tuple[int, int, int]]


def _common_runs(size: int, source: Sequence[Mode], target: Sequence[Mode]) -> list[_Run]:
    """An axis in as few runs as possible; none where the layouts' digits cut each other."""
    cuts = sorted({d for axis in (source, target) for d in divisors(axis) if d < size} | {1})
    if any(b % a for a, b in itertools.pairwise(cuts)):
        return []
    steps = [(step(source, cut), step(target, cut)) for cut in cuts]
    full = [
        (high // low, *both)
        for (low, high), both in zip(itertools.pairwise(cuts), steps, strict=False)
    ]
    runs, start = [], 0
    for at in reversed(range(len(cuts))):
        count = (size - start) // cuts[at]
        if count:
            starts = (step(source, start), step(target, start))
            runs.append(_Run(starts, [(count, *steps[at]), *full[:at][::-1]]))
            start += count * cuts[at]
    return runs


def _gather(memory: NDArray[Any], source: Layout, out: NDArray[Any], target: Layout) -> None:
    """Copies by offset tables, some rows at a time: they take more memory than the tensor."""
    rest = [
        Layout((1, *layout.shape[1:]), ((Mode(1, 1),), *layout.axes[1:])).places()[0]
        for layout in (source, target)
    ]
    first = [source.offsets(0), target.offsets(0)]
    count = max(1, _GATHER * source.shape[0] // source.size)
    for row in range(0, source.shape[0], count):
        rows = slice(row, row + count)
        out[np.add.outer(first[1][rows], rest[1])] = memory[np.add.outer(first[0][rows], rest[0])]
