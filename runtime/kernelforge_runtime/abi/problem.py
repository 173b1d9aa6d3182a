"""A problem: the named dimensions that one kernel call works on."""

from __future__ import annotations

import math
import re
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from typing import TypeVar, overload

from kernelforge_runtime.errors import PlanError

T = TypeVar("T")
_TERM = re.compile(r"([A-Z])(\d+)")
MAX_DIMENSION = 2**31 - 1


class Problem(Mapping[str, int]):
    """Named dimensions, e.g. `Problem(M=4096, K=4096)`; prints as `M4096.K4096`.

    Names are single capitals (see the glossary), values are 1 to 2^31-1. Order is kept for
    printing, but does not count for equality.

    Raises:
        PlanError: a name is not a single capital, or a value is out of range.
    """

    def __init__(self, **dims: int) -> None:
        for name, value in dims.items():
            if len(name) != 1 or not "A" <= name <= "Z":
                raise PlanError(f"problem dimension {name!r}: a dimension is one capital letter")
            if not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
                raise PlanError(f"problem dimension {name}={value!r}: use 1 to {MAX_DIMENSION}")
        self._dims = dims
        self._hash: int | None = None

    def __getitem__(self, name: str) -> int:
        return self._dims[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dims)

    def __len__(self) -> int:
        return len(self._dims)

    # As Mapping has them, but for the time that its generality takes.

    def __contains__(self, name: object) -> bool:
        return name in self._dims

    def keys(self) -> KeysView[str]:
        """The names."""
        return self._dims.keys()

    def items(self) -> ItemsView[str, int]:
        """Names and sizes."""
        return self._dims.items()

    @overload
    def get(self, name: str, /) -> int | None: ...
    @overload
    def get(self, name: str, default: int | T, /) -> int | T: ...
    def get(self, name: str, default: object = None, /) -> object:
        """The size of a dimension, if it is there."""
        return self._dims.get(name, default)

    def __hash__(self) -> int:
        if self._hash is None:  # kernels are looked for by their problems, again and again
            self._hash = hash(frozenset(self._dims.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and self._dims == other._dims

    def __str__(self) -> str:
        return ".".join(f"{name}{value}" for name, value in self._dims.items())

    def __repr__(self) -> str:
        return f"Problem({', '.join(f'{n}={v}' for n, v in self._dims.items())})"

    @classmethod
    def parse(cls, text: str) -> Problem:
        """Reads `M=4096,K=4096` (the command line's form) or `M4096.K4096` (the printed form)."""
        dims: dict[str, int] = {}
        for part in re.split(r"[.,]", text.strip()):
            match = _TERM.fullmatch(part.replace("=", "").strip())
            if match is None or match[1] in dims:
                raise PlanError(f"problem {text!r}: expected a form like M=4096,K=4096")
            dims[match[1]] = int(match[2])
        return cls(**dims)

    def distance(self, other: Problem) -> float:
        """How far apart two problems are: the sum of |log2| ratios over all dimensions.

        Infinite where they do not name the same dimensions. Counts aspect, not only volume.
        """
        mine, theirs = self._dims, other._dims
        if mine.keys() != theirs.keys():
            return math.inf
        total = 0.0
        for name, size in mine.items():
            if size != theirs[name]:
                total += abs(math.log2(size / theirs[name]))
        return total
