"""Moves a tensor's elements from one layout to another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

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
    memory = np.ascontiguousarray(array).reshape(-1)
    moves = Moves(source, target, memory.itemsize)
    if memory.size < source.cosize:
        raise LayoutError(f"{memory.size} elements; the layout reaches {source.cosize}")
    out = np.full(target.cosize, fill, memory.dtype)
    moves.run(memory, out)
    return out


class Moves:
    """How a tensor gets from one layout to another: worked out once for all that are alike.

    Elements that are neighbours in both layouts go in one piece of up to 16 bytes.
    """

    def __init__(self, source: Layout, target: Layout, itemsize: int) -> None:
        """Finds the moves.

        Args:
            source: where elements are.
            target: where they go.
            itemsize: bytes of an element.

        Raises:
            LayoutError: the shapes differ, or elements would collide.
        """
        if source.shape != target.shape:
            raise LayoutError(f"a tensor {source.shape} cannot take the layout of {target.shape}")
        if not target.is_injective():
            raise LayoutError(f"{target}: several elements share a place")
        self._layouts = source, target
        runs = [
            _common_runs(size, s, t)
            for size, s, t in zip(source.shape, source.axes, target.axes, strict=True)
        ]
        self._views: list[_Views] | None = None
        if all(runs):
            self._views = [_views(found, itemsize) for found in itertools.product(*runs)]

    def run(self, memory: NDArray[Any], out: NDArray[Any]) -> None:
        """Moves the elements of a tensor; what no element goes to is left as it is.

        Args:
            memory: of the source, one contiguous axis.
            out: of the target, one contiguous axis of the same element type.
        """
        if self._views is None:
            _gather(memory, self._layouts[0], out, self._layouts[1])
            return
        for shape, kind, (start, strides), (to_start, to_strides) in self._views:
            moved = np.ndarray(shape, kind, memory.data, start, strides)
            np.ndarray(shape, kind, out.data, to_start, to_strides)[...] = moved


_Views = tuple[tuple[int, ...], str, tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]]]
"""Shape, element type, and of either memory the first byte and the strides in bytes."""
_WIDE: Final = {16: "c16", 8: "u8", 4: "u4", 2: "u2", 1: "u1"}
"""Types of so many bytes that NumPy copies as they are."""


def _views(runs: Sequence[_Run], itemsize: int) -> _Views:
    """Both memories as arrays of one shape, of elements as wide as they can be."""
    digits = [digit for run in runs for digit in run.digits if digit[0] > 1]
    starts = [sum(run.starts[which] for run in runs) * itemsize for which in (0, 1)]
    shape = [extent for extent, _, _ in digits]
    strides = [[digit[which] * itemsize for digit in digits] for which in (1, 2)]
    width = itemsize
    inner = next((i for i, digit in enumerate(digits) if digit[1:] == (1, 1)), None)
    if inner is not None:
        others = [s for side in strides for i, s in enumerate(side) if i != inner]
        common = math.gcd(16, shape[inner] * itemsize, *starts, *others)
        if common > itemsize and common % itemsize == 0:
            width, shape[inner] = common, shape[inner] * itemsize // common
            strides[0][inner] = strides[1][inner] = width
    sides = [(start, tuple(side)) for start, side in zip(starts, strides, strict=True)]
    return tuple(shape), _WIDE.get(width, f"V{width}"), sides[0], sides[1]


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
