"""A tensor's layout: the digits of each axis and their strides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.layout.digits import LayoutError, Mode, Place, follow, joined, step
from kernelforge_runtime.layout.names import (
    LETTERS,
    read_name,
    read_sizes,
    write_name,
    write_sizes,
)


@dataclass(frozen=True)
class Layout:
    """Maps each index of a tensor to an offset in memory, both in elements.

    Attributes:
        shape: the tensor's own sizes.
        axes: the digits of each axis, slowest first. Their extents multiply to the axis' size or
            to more: what is beyond the size is padding.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[Mode, ...], ...]

    def __post_init__(self) -> None:
        if not self.shape or len(self.shape) != len(self.axes) or not all(self.axes):
            raise LayoutError(f"{self.shape}: expected one axis and more, with digits each")
        if min(self.shape) < 1 or any(m.extent < 1 or m.stride < 0 for a in self.axes for m in a):
            raise LayoutError(f"{self.shape}: sizes must be positive, strides not negative")
        for size, room in zip(self.shape, self.room, strict=True):
            if room < size:
                raise LayoutError(f"an axis of {size} has digits for {room} only")

    # Made from a shape or from text

    @classmethod
    def row_major(cls, shape: Sequence[int]) -> Layout:
        """The last axis is contiguous.

        >>> Layout.row_major((2, 3)).places().tolist()
        [[0, 1, 2], [3, 4, 5]]
        """
        return cls._nested(shape, [Place(a, 1, size) for a, size in enumerate(shape)])

    @classmethod
    def column_major(cls, shape: Sequence[int]) -> Layout:
        """The first axis is contiguous.

        >>> Layout.column_major((2, 3)).places().tolist()
        [[0, 2, 4], [1, 3, 5]]
        """
        return cls._nested(shape, [Place(a, 1, size) for a, size in enumerate(shape)][::-1])

    @classmethod
    def from_name(cls, name: str, sizes: Mapping[str, int]) -> Layout:
        """The layout of a name for a tensor; its axes are those of `sizes`, in that order.

        >>> Layout.from_name("K/2 M K%2", {"M": 2, "K": 4}).places().tolist()
        [[0, 1, 4, 5], [2, 3, 6, 7]]

        Raises:
            LayoutError: the name has a wrong form, or does not count each axis exactly once.
        """
        return _named(name, tuple(sizes.items()))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Reads what `describe` wrote.

        >>> Layout.parse("K M of M=2 K=3") == Layout.column_major((2, 3))
        True

        Raises:
            LayoutError: the text has a wrong form.
        """
        name, _, sizes = text.partition(" of ")
        return cls.from_name(name, read_sizes(sizes))

    @classmethod
    def _nested(cls, shape: Sequence[int], places: Sequence[Place]) -> Layout:
        axes: list[dict[int, Mode]] = [{} for _ in shape]
        stride = 1
        for place in reversed(places):
            axes[place.axis][place.divisor] = Mode(place.extent, stride)
            stride *= place.extent + place.gap
        return cls(tuple(shape), tuple(tuple(a[d] for d in sorted(a)[::-1]) for a in axes))

    # What it says

    @property
    def size(self) -> int:
        """Elements of the tensor.

        >>> Layout.row_major((5, 3)).pad(0, 4).size
        15
        """
        return math.prod(self.shape)

    @property
    def room(self) -> tuple[int, ...]:
        """The sizes with padding.

        >>> Layout.row_major((5, 3)).pad(0, 4).room
        (8, 3)
        """
        return tuple(math.prod(m.extent for m in axis) for axis in self.axes)

    @property
    def cosize(self) -> int:
        """Elements of memory, padding and gaps included: one more than the largest offset.

        >>> Layout.row_major((5, 3)).pad(0, 4).cosize
        24
        """
        return 1 + sum((m.extent - 1) * m.stride for axis in self.axes for m in axis)

    def offset(self, *index: int) -> int:
        """Where an element lies.

        >>> Layout.row_major((4, 4)).tile(0, 2).offset(3, 1)  # columns of 2 in rows of columns
        11

        Raises:
            LayoutError: the index is not of this tensor.
        """
        if len(index) != len(self.shape) or any(
            not 0 <= i < n for i, n in zip(index, self.shape, strict=True)
        ):
            raise LayoutError(f"no element {index} in a tensor {self.shape}")
        return sum(step(axis, i) for axis, i in zip(self.axes, index, strict=True))

    def offsets(self, axis: int) -> NDArray[np.int64]:
        """What each index of one axis adds to the offset, i64 [size].

        >>> Layout.row_major((4, 4)).tile(0, 2).offsets(0).tolist()
        [0, 1, 8, 9]
        """
        rest = np.arange(self.shape[axis])
        total = np.zeros(self.shape[axis], np.int64)
        for mode in reversed(self.axes[axis]):
            total += rest % mode.extent * mode.stride
            rest //= mode.extent
        return total

    def places(self) -> NDArray[np.int64]:
        """Offsets of all elements, i64 [shape].

        >>> Layout.row_major((2, 2)).with_gap(1, 1).places().tolist()
        [[0, 1], [3, 4]]
        """
        total = self.offsets(0)
        for axis in range(1, len(self.shape)):
            total = np.add.outer(total, self.offsets(axis))
        return total

    def is_injective(self) -> bool:
        """Whether no two elements share a place.

        >>> Layout((4, 4), ((Mode(4, 1),), (Mode(4, 2),))).is_injective()
        False
        """
        reached = 0
        for mode in sorted((m for a in self.axes for m in a if m.extent > 1), key=lambda m: m[1]):
            if mode.stride <= reached:
                # Strides may interleave without a clash, and padding may clash alone: count.
                return len(np.unique(self.places())) == self.size
            reached += (mode.extent - 1) * mode.stride
        return True

    def name(self, letters: str = LETTERS) -> str:
        """How memory is nested, as `from_name` reads it; axis i is called `letters[i]`.

        >>> Layout.row_major((64, 64)).tile(0, 32).tile(1, 8).name()
        'M/32 K/8 M%32 K%8'

        Raises:
            LayoutError: strides that are not nested, such as 0, have no name.
        """
        return write_name(self._order(), self.shape, letters)

    def describe(self, letters: str = LETTERS) -> str:
        """Name and sizes, as `parse` reads them.

        >>> Layout.row_major((5, 3)).pad(0, 4).describe()
        'M/4 M%4 K of M=5 K=3'
        """
        return f"{self.name(letters)} of {write_sizes(self.shape, letters)}"

    def _order(self) -> list[Place]:
        """The digits as memory nests them, slowest first; raises where it does not."""
        digits = []
        for axis, modes in enumerate(self.axes):
            divisor = self.room[axis]
            for number, mode in enumerate(modes):
                divisor //= mode.extent
                if mode.extent > 1 or number == 0:
                    digits.append((mode.stride, Place(axis, divisor, mode.extent)))
        # Of two with the same stride, one counts to 1: it comes inside.
        digits.sort(key=lambda d: (-d[0], d[1].extent == 1, d[1].axis, -d[1].divisor))
        order: list[Place] = []
        for number, (stride, place) in enumerate(digits):
            outer = digits[number - 1][0] if number else stride * place.extent
            inside = number == len(digits) - 1 and stride != 1
            if stride == 0 or inside or outer % stride or outer // stride < place.extent:
                raise LayoutError(f"{self}: its strides are not nested, so it has no name")
            order.append(place._replace(gap=outer // stride - place.extent))
        return order

    # Other layouts of the same tensor

    def tile(self, axis: int, size: int) -> Layout:
        """Makes blocks of an axis' elements innermost: they and their order stay together.

        The last block is padded where `size` does not divide the axis.

        >>> Layout.row_major((4, 2)).tile(0, 2).places().tolist()
        [[0, 2], [1, 3], [4, 6], [5, 7]]

        Raises:
            LayoutError: the axis has digits that a block of this size would cut.
        """
        places = self._split(axis, size)
        inner = [p for p in places if p.axis == axis and p.divisor < size]
        return self._nested(self.shape, [p for p in places if p not in inner] + inner)

    def pad(self, axis: int, multiple: int) -> Layout:
        """Rounds an axis up with padding; nothing else moves.

        >>> Layout.row_major((2, 3)).pad(1, 4).places().tolist()
        [[0, 1, 2], [4, 5, 6]]

        Raises:
            LayoutError: the axis has digits that a block of this size would cut.
        """
        multiples = (p for p in self._order() if p.axis == axis and multiple > 0)
        if any(p.divisor % multiple == 0 for p in multiples):
            return self
        return self._nested(self.shape, self._split(axis, multiple))

    def with_gap(self, axis: int, elements: int) -> Layout:
        """Leaves room behind the fastest digit of an axis, as `tile[M][K + 1]` does in a kernel.

        >>> Layout.row_major((2, 4)).with_gap(1, 1).name()
        'M K+1'
        """
        order = self._order()
        at = order.index(min((p for p in order if p.axis == axis), key=lambda p: p.divisor))
        order[at] = order[at]._replace(gap=order[at].gap + elements)
        return self._nested(self.shape, order)

    def permute(self, *order: int) -> Layout:
        """The same memory with the tensor's axes in another order, like `numpy.transpose`.

        >>> Layout.row_major((2, 3)).permute(1, 0) == Layout.column_major((3, 2))
        True
        """
        if sorted(order) != list(range(len(self.shape))):
            raise LayoutError(f"axes {order}: expected 0 to {len(self.shape) - 1} in some order")
        return Layout(tuple(self.shape[a] for a in order), tuple(self.axes[a] for a in order))

    def words(self, axis: int, per_word: int) -> Layout:
        """The layout of words that each hold neighbours along an axis, as q8, nf4 and halves do.

        >>> Layout.row_major((64, 64)).tile(0, 32).tile(1, 8).words(1, 4).describe()
        'M/32 K/2 M%32 K%2 of M=64 K=16'

        Raises:
            LayoutError: the elements of some word are not side by side.
        """
        if per_word == 1:
            return self
        fastest = self.axes[axis][-1]
        axes = [list(modes) for modes in self.axes]
        axes[axis][-1] = Mode(1, 1)
        others = [m.stride for modes in axes for m in modes if m.extent > 1]
        counts = [fastest.extent, self.shape[axis], *others]
        if per_word < 1 or fastest.stride != 1 or any(count % per_word for count in counts):
            raise LayoutError(f"{self}: no {per_word} neighbours along axis {axis} make a word")
        axes = [[Mode(m.extent, max(1, m.stride // per_word)) for m in modes] for modes in axes]
        axes[axis][-1] = Mode(fastest.extent // per_word, 1)
        shape = [n // per_word if a == axis else n for a, n in enumerate(self.shape)]
        return Layout(tuple(shape), tuple(tuple(modes) for modes in axes))

    def compose(self, other: Layout) -> Layout:
        """Follows `other`, then this one: its offsets are taken as row-major indices of this.

        So `other` selects and arranges elements of this tensor, wherever they lie.

        >>> transpose = Layout.column_major((3, 2))
        >>> Layout.row_major((2, 3)).with_gap(1, 1).compose(transpose).places().tolist()
        [[0, 4], [1, 5], [2, 6]]

        Raises:
            LayoutError: `other` reaches beyond this tensor, or what results has no strides.
        """
        if other.cosize > self.size:
            raise LayoutError(f"offsets up to {other.cosize - 1} in a tensor {self.shape}")
        digits = self._digits()
        reached = [0] * len(digits)
        axes = []
        for axis in other.axes:
            found: list[Mode] = []
            for number, mode in enumerate(axis):
                moved = list(follow(digits, mode, padded=number == 0))
                for at, extent, by in moved:
                    reached[at] += (extent - 1) * by
                found += [Mode(e, digits[at].stride * by) for at, e, by in reversed(moved)]
            axes.append(tuple(found) or (Mode(1, 1),))
        # Digits of `other` that together overflow one of ours would carry into the next.
        if any(r >= d.extent for r, d in zip(reached[:-1], digits[:-1], strict=True)):
            raise LayoutError(f"{self}: strides cannot say what {other} selects")
        return Layout(other.shape, tuple(axes))

    def simplified(self) -> Layout:
        """The same offsets with as few digits as possible.

        >>> Layout.row_major((64, 64)).pad(0, 32).simplified() == Layout.row_major((64, 64))
        True
        """
        return replace(self, axes=tuple(joined(axis) for axis in self.axes))

    def _split(self, axis: int, size: int) -> list[Place]:
        """The digits with one of the axis cut in two, so that one counts to `size`."""
        order = self._order()
        if size < 1:
            raise LayoutError(f"blocks of {size}: expected 1 or more")
        if size == 1 or any(p.axis == axis and p.divisor == size for p in order):
            return order
        digits = sorted((p for p in order if p.axis == axis), key=lambda p: p.divisor)
        cut = [p for p in digits if p.divisor < size][-1]
        inner, left = divmod(size, cut.divisor)
        if left or cut.gap or (cut is not digits[-1] and cut.extent % inner):
            raise LayoutError(f"{self.name()}: cannot be cut in blocks of {size} along axis {axis}")
        outer = Place(axis, size, -(-cut.extent // inner))
        at = order.index(cut)
        return [*order[:at], outer, cut._replace(extent=inner), *order[at + 1 :]]

    def _digits(self) -> list[Mode]:
        """All digits of a row-major index, fastest first; the last one may count to any number."""
        digits: list[Mode] = []
        for axis in reversed(range(len(self.shape))):
            first, *rest = joined(self.axes[axis])
            outer, left = divmod(self.shape[axis], math.prod(m.extent for m in rest))
            if axis and left:
                raise LayoutError(f"{self}: axis {axis} has padding that a row-major index lacks")
            digits += [*rest[::-1], Mode(outer if axis else first.extent, first.stride)]
        return [m for m in digits[:-1] if m.extent > 1] + digits[-1:]


@lru_cache(maxsize=512)
def _named(name: str, sizes: tuple[tuple[str, int], ...]) -> Layout:
    """Layout.from_name; kept, as a model's matrices have few shapes and bundles few layouts."""
    known = dict(sizes)
    return Layout._nested(tuple(known.values()), read_name(name, known))
