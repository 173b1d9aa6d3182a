"""Workgroup counts as data: products of `ceil(dimension / divisor)` and of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernelforge_runtime.errors import PlanError


@dataclass(frozen=True)
class CeilDiv:
    """`ceil(dims[dim] / divisor)`."""

    dim: str
    divisor: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.divisor <= 2**31 - 1:
            raise PlanError(f"grid divisor {self.divisor} of {self.dim}: use 1 or more")

    def evaluate(self, dims: Mapping[str, int]) -> int:
        """The count for these dimensions."""
        if self.dim not in dims:
            raise PlanError(f"grid needs dimension {self.dim}; the problem has {sorted(dims)}")
        return -(-dims[self.dim] // self.divisor)


@dataclass(frozen=True)
class Times:
    """The same count for all dimensions."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 2**31 - 1:
            raise PlanError(f"grid count {self.count}: use 1 or more")

    def evaluate(self, dims: Mapping[str, int]) -> int:
        """The count."""
        return self.count


Term = CeilDiv | Times


@dataclass(frozen=True)
class Grid:
    """Workgroup counts in x, y and z; each axis is a product of terms, an empty one is 1."""

    x: tuple[Term, ...] = ()
    y: tuple[Term, ...] = ()
    z: tuple[Term, ...] = ()

    def evaluate(self, dims: Mapping[str, int]) -> tuple[int, int, int]:
        """Workgroup counts (x, y, z) for these dimensions."""
        counts = []
        for axis in (self.x, self.y, self.z):
            count = 1
            for term in axis:
                count *= term.evaluate(dims)
            counts.append(count)
        return counts[0], counts[1], counts[2]

    def to_json(self) -> list[list[Any]]:
        """Form kept in manifests: `[[["M", 8]], [], [4]]`."""
        return [[_written(term) for term in axis] for axis in (self.x, self.y, self.z)]

    @classmethod
    def from_json(cls, data: Any) -> Grid:
        """Reads what `to_json` wrote; a wrong form raises PlanError."""
        try:
            x, y, z = (tuple(_read(term) for term in axis) for axis in data)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"grid {data!r}: expected three lists of [dimension, divisor] and of numbers"
            ) from error
        return cls(x, y, z)


def _written(term: Term) -> Any:
    return term.count if isinstance(term, Times) else [term.dim, term.divisor]


def _read(term: Any) -> Term:
    if isinstance(term, int):
        return Times(term)
    dim, divisor = term
    return CeilDiv(str(dim), int(divisor))
