"""gemm without bounds tests: right for whole tiles, and refused for everything else."""

import numpy as np
import pytest

from kernelforge.compile import compile_variant
from kernelforge.families.gemm import GEMM
from kernelforge.render import render
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F16, F32, Q8
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.plan import Dispatch, Plan
from tests.families.running import assert_close, run

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SMALL = {"BM": 16, "BT": 8, "BK": 32, "TM": 2, "TT": 4, "WORKGROUP": 16}
WIDE = {"BM": 64, "BT": 32, "TM": 8, "TT": 4, "WORKGROUP": 64, "PREFETCH": True, "ADDRESS": True}


def aligned(device, precision, x=32, y=32, **changes):
    """A variant that the device can run."""
    params = {**GEMM.space.declared_default, "X": x, "Y": y, "EDGES": "aligned", **changes}
    if reason := GEMM.fits(precision, params, device.info):
        pytest.skip(f"{device.info.name}: {reason}")
    return params


@pytest.mark.parametrize(
    ("precision", "m", "t", "x", "y", "change"),
    [
        (F32, 96, 32, 32, 32, {}),
        (F16, 160, 64, 16, 16, {"ADDRESS": True}),
        (Q8, 96, 24, 32, 16, SMALL),
        (F32, 192, 64, 32, 32, WIDE),
        (F16, 96, 64, 32, 32, {"SPLIT_GRID": 2}),
    ],
    ids=str,
)
def test_whole_tiles_are_right_without_bounds_tests(device, rng, precision, m, t, x, y, change):
    problem = Problem(M=m, K=160, S=2, T=t, X=x, Y=y)
    params = aligned(device, precision, x, y, **change)
    given = GEMM.inputs(problem, precision, rng)
    expected = GEMM.oracle(problem, precision, given, {})
    found = run(device, GEMM, precision, params, problem, given)
    assert_close(GEMM, problem, found, expected, params)


def test_no_bounds_test_is_left_in_them():
    for change in ({}, WIDE):
        checked = {**GEMM.space.declared_default, **change}
        text = render(GEMM, F32, checked).glsl
        assert "T - 1u" in text and "< T" in text
        text = render(GEMM, F32, {**checked, "EDGES": "aligned"}).glsl
        for bound in ("T - 1u", "< T", "M - 1u", ">= M", "< M"):
            assert bound not in text, bound


@pytest.mark.parametrize(("m", "t"), [(96, 64), (128, 33), (128, 31), (128, 1), (32, 32), (64, 16)])
def test_a_problem_with_a_rest_is_refused_before_anything_runs(device, m, t):
    params = aligned(device, F32, **WIDE)
    problem = Problem(M=m, K=32, S=1, T=t, X=32, Y=32)
    with pytest.raises(PlanError, match=r"multiples of \{'M': 64, 'T': 32\}; asked for"):
        Plan(device, [Dispatch(compile_variant(GEMM, F32, params), problem, {})])


def test_the_tuner_tries_them_for_whole_tiles_only(device):
    def edges(**dims):
        problem = Problem(**dims, K=64, S=1, X=32, Y=32)
        return {p["EDGES"] for p in GEMM.valid(F32, device.info, problem)}

    assert edges(M=768, T=256) == edges(M=96, T=8) == {"checked", "aligned"}
    assert edges(M=768, T=257) == edges(M=768, T=31) == {"checked"}
    problem = Problem(M=96, K=64, S=1, T=40, X=32, Y=32)
    assert all(
        GEMM.signature(F32, p).serves(problem) for p in GEMM.valid(F32, device.info, problem)
    )


def test_sums_are_the_same_bits_with_and_without_bounds_tests(device, rng):
    problem = Problem(M=64, K=96, S=1, T=32, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    one, other = (
        run(device, GEMM, F32, aligned(device, F32, EDGES=edges), problem, given)["out_y"]
        for edges in ("aligned", "checked")
    )
    np.testing.assert_array_equal(one, other)
