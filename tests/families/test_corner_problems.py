"""What conformance runs on is awkward: one, primes, beside a tile's size, wide, tall, batches."""

from __future__ import annotations

from math import isqrt

import pytest

from kernelforge.families import load_families
from kernelforge.family import KernelFamily

FAMILIES = [pytest.param(family, id=name) for name, family in load_families().items()]
CODED = frozenset("XYQ")
"""Dimensions that say how wide an element or a symbol is."""
TILES = {1: 8, 4: 16, 32: 64}
"""By the step in which a dimension may grow: its smallest tile that is more than one step."""
ROWS, WIDTH = "TBL", "KCFSEVH"
"""Dimensions that count tokens or sequences; those along a token. The first that there is."""


def sizes(family: KernelFamily) -> set[int]:
    return {
        size
        for problem in family.corner_problems
        for name, size in problem.items()
        if name not in CODED
    }


def is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, isqrt(number) + 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_a_one_and_a_prime(family: KernelFamily) -> None:
    assert 1 in sizes(family)
    assert any(size >= 7 and is_prime(size) for size in sizes(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_one_step_less_and_one_step_more_than_a_tile(family: KernelFamily) -> None:
    found = sizes(family)
    assert any(size % tile == tile - step for size in found for step, tile in TILES.items())
    assert any(
        size > tile and size % tile == step for size in found for step, tile in TILES.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_a_wide_and_a_tall_problem(family: KernelFamily) -> None:
    rows = next((name for name in ROWS if name in family.dims), None)
    width = next((name for name in WIDTH if name in family.dims), None)
    if rows is None or width is None:
        pytest.skip(f"{family.name} has one dimension")
    ratios = [problem[width] / problem[rows] for problem in family.corner_problems]
    assert max(ratios) >= 8 * min(ratios)


@pytest.mark.parametrize("name", ["B", "S"])
def test_problems_of_several_sequences_or_inputs_come_with_one_and_with_more(name: str) -> None:
    families = [family for family in load_families().values() if name in family.dims]
    assert families
    for family in families:
        counts = {problem[name] for problem in family.corner_problems}
        assert 1 in counts, family.name
        assert max(counts) > 1, family.name
