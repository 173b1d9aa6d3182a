"""Problems: named dimensions that print, parse and compare."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelforge_runtime.abi.problem import MAX_DIMENSION, Problem
from kernelforge_runtime.errors import PlanError

problems = st.dictionaries(
    st.sampled_from("BCEHKMNPSTV"), st.integers(1, MAX_DIMENSION), min_size=1
).map(lambda dims: Problem(**dims))


@given(problems)
def test_both_forms_parse_back(problem):
    assert Problem.parse(str(problem)) == problem
    assert Problem.parse(", ".join(f"{n}={v}" for n, v in problem.items())) == problem


def test_order_is_kept_for_printing_but_does_not_count():
    one, two = Problem(M=4, K=2), Problem(K=2, M=4)
    assert (str(one), str(two)) == ("M4.K2", "K2.M4")
    assert repr(one) == "Problem(M=4, K=2)"
    assert one == two
    assert hash(one) == hash(two)
    assert one != {"M": 4, "K": 2}


def test_a_problem_is_a_mapping():
    problem = Problem(M=4, K=2)
    assert dict(problem) == {"M": 4, "K": 2}
    assert {**problem, "eps": 1}["M"] == 4
    assert len(problem) == 2
    assert "T" not in problem


@pytest.mark.parametrize(
    "dims",
    [{"MM": 1}, {"m": 1}, {"M": 0}, {"M": -1}, {"M": 2**31}, {"M": 1.5}, {"M": "4"}, {"É": 1}],
)
def test_a_wrong_dimension_is_refused(dims):
    with pytest.raises(PlanError, match="problem dimension"):
        Problem(**dims)


@pytest.mark.parametrize(
    "text", ["", "M", "M=", "4096", "M=1,M=2", "M1.M1", "M=1;K=2", "m=4", "M=-4", "M=4.5", "M=0x10"]
)
def test_a_text_that_is_no_problem_is_refused(text):
    with pytest.raises(PlanError):
        Problem.parse(text)


@given(problems, problems)
def test_distance_is_symmetric_and_zero_only_for_equals(a, b):
    assert a.distance(b) == pytest.approx(b.distance(a))
    assert a.distance(a) == 0
    assert (a.distance(b) == 0) == (a == b)


def test_distance_counts_aspect_and_other_dimensions_are_infinitely_far():
    square = Problem(M=1024, K=1024)
    assert square.distance(Problem(M=2048, K=512)) == 2
    assert square.distance(Problem(M=4096, K=1024)) == 2
    assert math.isinf(square.distance(Problem(M=1024)))
