"""Grids: as many workgroups as cover the problem, and not one more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelforge_runtime.abi.grid import CeilDiv, Grid, Times
from kernelforge_runtime.errors import PlanError

sizes = st.integers(1, 2**31 - 1)
terms = st.builds(CeilDiv, st.sampled_from("MNKT"), sizes) | st.builds(Times, sizes)
grids = st.builds(Grid, *(st.lists(terms, max_size=3).map(tuple) for _ in range(3)))


@given(sizes, sizes)
def test_a_count_covers_the_dimension_and_no_more(size, divisor):
    count = CeilDiv("M", divisor).evaluate({"M": size})
    assert (count - 1) * divisor < size <= count * divisor


def test_axes_are_products_and_an_empty_axis_is_one():
    grid = Grid((CeilDiv("H"), CeilDiv("N", 16)), (CeilDiv("T", 3),))
    assert grid.evaluate({"H": 12, "N": 64, "T": 7}) == (48, 3, 1)
    assert Grid().evaluate({}) == (1, 1, 1)
    assert Grid((CeilDiv("T", 3), Times(2)), z=(Times(8),)).evaluate({"T": 7}) == (6, 1, 8)


@given(grids)
def test_a_grid_comes_back_from_its_manifest_form(grid):
    assert Grid.from_json(grid.to_json()) == grid


def test_a_missing_dimension_is_named():
    with pytest.raises(PlanError, match=r"grid needs dimension T; the problem has \['M'\]"):
        Grid((CeilDiv("T"),)).evaluate({"M": 1})


@pytest.mark.parametrize("divisor", [0, -1, 2**31])
def test_a_divisor_out_of_range_is_refused(divisor):
    with pytest.raises(PlanError, match="grid divisor"):
        CeilDiv("M", divisor)


@pytest.mark.parametrize(
    "data",
    [None, 7, [], [[], []], [[], [], [], []], {"x": []}, "xyz", [["M", 1], [], []]]
    + [
        [[term], [], []]
        for term in (["M"], ["M", "x"], ["M", None], ["M", 0], ["M", 1, 1], 0, -1, 2.0)
    ],
)
def test_a_wrong_form_is_refused(data):
    with pytest.raises(PlanError):
        Grid.from_json(data)
