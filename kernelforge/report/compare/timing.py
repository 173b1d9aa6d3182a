"""Times of one side of a comparison, by what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LEAST_ROUNDS = 3
"""Samples behind a median whose number is not told: a tuning run takes no fewer."""
LEN_PROBLEM = 3
"""Parts of a key that names a problem's best kernel; one more names a single layout's."""
Key = tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """A median time, in any unit that both sides share.

    Attributes:
        name: for people.
        value: median; above 0.
        spread: median absolute deviation, relative to the median; NaN where not known.
        samples: behind the median; 0 where not known.
        what: the kernel's parameters, or the bundle: may differ between the sides.
        text: the median, with its unit.
        rounding: relative error of a value that was read from a table; 0 of one kept whole.
        run: tells measurements apart: the same on both sides where it is one; "" where not known.
        beside: of the family's default, which took turns with it; NaN where not known.
        rivals: by their parameters, other kernels that were measured with it: run and median.
    """

    name: str
    value: float
    spread: float
    samples: int
    what: str
    text: str
    rounding: float = 0.0
    run: str = ""
    beside: float = math.nan
    rivals: Mapping[str, tuple[str, float]] = field(default_factory=dict)


@dataclass
class Side:
    """What one side measured.

    Attributes:
        label: as the user named it.
        kernels: times per dispatch, by family, precision and problem.
        models: seconds per token, by model, weights, test and whether kernels are generic.
        ceilings: of the device, by name; empty where not measured.
        facts: `device`, `driver`, `processor`, `commit`, `bundle`, as far as known.
    """

    label: str
    kernels: dict[Key, Timing] = field(default_factory=dict)
    models: dict[Key, Timing] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def same_kernel(first: Timing, second: Timing) -> Timing:
    """What B tells of A's kernel, where one measurement is told by both.

    In an altered copy of a journal another kernel may be the fastest: then A's kernel changed.
    """
    run, value = second.rivals.get(first.what, ("", 0.0))
    if first.what == second.what or not run or run != first.run or value <= 0:
        return second
    spread = first.spread * first.value / value
    return replace(second, what=first.what, value=value, run=run, spread=spread,
                   samples=first.samples, text=_like(first.text, value / first.value))  # fmt: skip


def _like(text: str, ratio: float) -> str:
    number, _, unit = text.partition(" ")
    return f"{float(number) * ratio:.2f} {unit}"
