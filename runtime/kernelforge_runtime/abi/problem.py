"""A problem: the named dimensions that one kernel call works on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from kernelforge_runtime.errors import PlanError

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
            if not re.fullmatch(r"[A-Z]", name):
                raise PlanError(f"problem dimension {name!r}: a dimension is one capital letter")
            if not isinstance(value, int) or not 1 <= value <= MAX_DIMENSION:
                raise PlanError(f"problem dimension {name}={value!r}: use 1 to {MAX_DIMENSION}")
        self._dims = dims

    def __getitem__(self, name: str) -> int:
        return self._dims[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dims)

    def __len__(self) -> int:
        return len(self._dims)

    def __hash__(self) -> int:
        return hash(frozenset(self._dims.items()))

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
        if self._dims.keys() != other._dims.keys():
            return math.inf
        return sum(abs(math.log2(self[n] / other[n])) for n in self._dims)
