"""Verification: what is let through, what is caught, and what it says."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from kernelforge.errors import MeasureError
from kernelforge.measure.reduced import reduced_problem
from kernelforge.measure.verify import (
    Verifier,
    allowed_error,
    compare,
    reduction_length,
    verify,
)
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, F32, U32, encode
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import inputs, needs_compiler, small_family

FAULTS = ("none", "wrong", "overrun", "hole", "broken")
PROBLEM = Problem(M=37, K=64)


@pytest.fixture
def device(llvmpipe: Device) -> Device:
    needs_compiler()
    return llvmpipe


def params(fault: str) -> dict[str, object]:
    return {"WORKGROUP": 16, "ROWS": 1, "FAULT": fault}


@pytest.mark.parametrize("length", [64, 768, 16384])
def test_float32_sums_in_any_order_are_allowed(length: int) -> None:
    rng = np.random.default_rng(length)
    a, b = rng.standard_normal((2, 200, length)).astype(np.float32)
    exact = (a.astype(np.float64) * b).sum(axis=1)
    one_by_one = np.zeros(200, np.float32)
    for k in range(length):
        one_by_one += a[:, k] * b[:, k]
    assert compare("y", one_by_one, exact, F32, length).ok


@pytest.mark.parametrize("length", [64, 768, 16384])
def test_a_sum_that_misses_one_term_is_not(length: int) -> None:
    rng = np.random.default_rng(length)
    a, b = rng.standard_normal((2, 200, length)).astype(np.float32)
    exact = (a.astype(np.float64) * b).sum(axis=1)
    assert not compare("y", exact - a[:, -1] * b[:, -1], exact, F32, length).ok


def test_results_may_be_rounded_to_the_type_they_are_stored_in() -> None:
    exact = np.random.default_rng(1).standard_normal((8, 32)).astype(np.float32)
    for dtype in (F16, BF16):
        assert compare("y", encode(exact, dtype), exact, dtype, 64).ok
        assert not compare("y", encode(exact * 1.05, dtype), exact, dtype, 64).ok


def test_the_message_says_where_it_is_wrong_and_by_how_much() -> None:
    exact = np.ones((4, 5), np.float32)
    found = exact.copy()
    found[2, 3] = 1.5
    result = compare("y", found, exact, F32, 64, seed=7)
    assert not result.ok
    assert result.where == "y[2, 3]"
    assert result.max_error == 0.5
    assert "is 1.5, expected 1" in result.reason
    assert "1 of 20" in result.reason
    assert "seed 7" in result.reason


def test_nan_and_infinity_only_equal_themselves() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    assert compare("y", odd, odd, F32, 64).ok
    for place, value in ((0, 1.0), (1, -np.inf), (1, 3e38), (3, np.nan), (3, np.inf)):
        found = odd.copy()
        found[place] = value
        result = compare("y", found, odd, F32, 64)
        assert not result.ok
        assert math.isinf(result.max_error)
        assert result.where == f"y[{place}]"


def test_whole_numbers_must_be_equal() -> None:
    exact = np.arange(10, dtype=np.uint32)
    assert compare("n", exact, exact, U32, 64).ok
    assert not compare("n", exact + np.uint32(1), exact, U32, 64).ok
    assert not allowed_error(exact, U32, 64).any()


def test_the_reduction_is_what_the_output_does_not_have() -> None:
    problem = Problem(M=4096, K=768, B=2)
    assert reduction_length(problem, ("B", "M")) == 768
    assert reduction_length(problem, ("M/32", "B")) == 768
    assert reduction_length(Problem(M=4096, K=768, X=16, Y=32), ("M",)) == 768
    assert reduction_length(Problem(T=5, C=300), ("T", "C")) == 300
    assert reduction_length(Problem(T=5, C=30), ("T", "C")) == 64


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_right_kernel_passes_with_any_seed(device: Device) -> None:
    for seed in (1, 2, 3):
        found = verify(device, small_family(FAULTS), F32, params("none"), PROBLEM, seed)
        assert found.ok, found.reason
        assert 0 < found.max_error < found.tolerance
        assert found.seed == seed


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("wrong", r"result\[3\]"),
        ("overrun", "past the end of result"),
        ("hole", "1 words .* never written"),
    ],
)
def test_faults_are_caught_and_named(device: Device, fault: str, says: str) -> None:
    found = verify(device, small_family(FAULTS), F32, params(fault), PROBLEM, 1)
    assert not found.ok
    assert "seed 1" in found.reason
    assert re.search(says, found.reason), found.reason


@pytest.mark.vulkan
@pytest.mark.glslang
def test_reading_past_the_end_gives_a_wrong_result(device: Device) -> None:
    """Inputs are followed by NaN: the kernel is told of one column more than there is."""
    family = small_family(FAULTS, constants=lambda problem: {"K": problem["K"] + 1})
    found = verify(device, family, F32, params("none"), Problem(M=1, K=64), 1)
    assert not found.ok


@pytest.mark.vulkan
@pytest.mark.glslang
def test_outputs_of_an_earlier_run_do_not_hide_a_hole(device: Device) -> None:
    from kernelforge.compile import compile_variant

    family = small_family(FAULTS)
    right, hole = (compile_variant(family, F32, params(f)) for f in ("none", "hole"))
    with Verifier(device, family, F32, PROBLEM) as verifier:
        assert verifier.verify(right, 5).ok
        assert not verifier.verify(hole, 5).ok


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_family_whose_declarations_disagree_is_an_error_of_its_own(device: Device) -> None:
    short = small_family(
        FAULTS, inputs=lambda p, d, rng: {"weight": np.zeros(3), "vector": np.zeros(3)}
    )
    with pytest.raises(MeasureError, match="bytes"):
        verify(device, short, F32, params("none"), PROBLEM, 1)
    silent = small_family(FAULTS, oracle=lambda *_: {"other": np.zeros(3)})
    with pytest.raises(MeasureError, match="oracle"):
        verify(device, silent, F32, params("none"), PROBLEM, 1)
    missing = small_family(
        FAULTS,
        inputs=lambda p, d, rng: {"vector": inputs(p, d, rng)["vector"]},
        oracle=lambda p, d, arrays, c: {"result": np.zeros(p["M"])},
    )
    with pytest.raises(MeasureError, match="weight is read"):
        verify(device, missing, F32, params("none"), PROBLEM, 1)


def test_a_large_problem_is_verified_on_fewer_rows_with_the_same_remainder() -> None:
    small = reduced_problem(small_family(), F32, Problem(M=65537, K=2048), GENERIC)
    assert small == Problem(M=257, K=2048)


def test_a_small_problem_is_verified_as_it_is() -> None:
    assert reduced_problem(small_family(), F32, PROBLEM, GENERIC) is None


def test_a_sum_is_never_shortened() -> None:
    small = reduced_problem(small_family(), F32, Problem(M=100, K=1_000_000), GENERIC)
    assert small is None


def test_a_smaller_problem_that_the_family_refuses_is_not_used() -> None:
    family = small_family(problem_rule=lambda p: None if p["M"] > 1000 else "M is over 1000")
    assert reduced_problem(family, F32, Problem(M=65536, K=2048), GENERIC) is None
