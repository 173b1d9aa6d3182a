"""gemm_half: sums in halves that stay within what a product of halves may lose, and no further."""

import numpy as np
import pytest

from kernelforge.families.gemm import GEMM
from kernelforge.families.gemm_half import GEMM_HALF
from kernelforge.measure.verify import compare, reduction_length
from kernelforge.traits.matrices import stored_weight
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F16, F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

WIDE = {"BM": 64, "TM": 8, "TT": 4, "WORKGROUP": 64, "PREFETCH": True, "GROUP": 8, "ADDRESS": True}


@pytest.fixture
def half_device(device):
    """A device with float16."""
    if "float16" not in device.info.features:
        pytest.skip(f"{device.info.name} has no float16")
    return device


def test_a_device_without_float16_gets_none():
    assert "float16" not in GENERIC.features
    assert GEMM_HALF.valid(F16, GENERIC) == []


def test_sums_that_a_half_holds_are_exact(half_device, rng):
    """Small whole numbers: not a bit is lost, whatever is summed where."""
    problem = Problem(M=96, K=160, S=1, T=37, X=16, Y=32)
    whole = rng.integers(-8, 9, (96, 160)).astype(np.float32)
    given = GEMM_HALF.inputs(problem, F16, rng) | stored_weight(whole, F16)
    given["in_x"] = rng.integers(-8, 9, (1, 37, 160)).astype(np.float16)
    given["route"][:, 2] = 0
    exact = given["in_x"][0].astype(np.float32) @ whole.T
    default = {**GEMM_HALF.space.declared_default}
    for change in (
        {},
        {"FLUSH": 8, "ADDRESS": True},
        {"SPLIT_GRID": 4, "ADDRESS": True},
        WIDE,
        {**WIDE, "SPLIT_GRID": 2, "GROUP": 0},
    ):
        params = {**default, **change}
        found = run(half_device, GEMM_HALF, F16, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


def test_wide_tiles_serve_rows_of_several_inputs_with_their_epilogues(half_device, rng):
    problem = Problem(M=320, K=96, S=3, T=37, X=16, Y=16)
    given = GEMM_HALF.inputs(problem, F16, rng)
    given["route"][:, 0] = np.array([0, 0, 1, 0, 2, 2, 2, 2, 1, 0]) * 37 * 96
    expected = GEMM_HALF.oracle(problem, F16, given, {})
    params = {**GEMM_HALF.space.declared_default, **WIDE, "Y": 16}
    found = run(half_device, GEMM_HALF, F16, params, problem, given)
    assert_close(GEMM_HALF, problem, found, expected, params)


def test_the_tolerance_of_float32_sums_is_missed_so_that_this_is_a_family_of_its_own(
    half_device, rng
):
    problem = Problem(M=96, K=768, S=1, T=32, X=16, Y=32)
    given = GEMM_HALF.inputs(problem, F16, rng)
    given["route"][:, 2] = 0
    expected = GEMM_HALF.oracle(problem, F16, given, {})["out_y"]
    length = reduction_length(problem, ("T", "M"))
    flushes = [{"FLUSH": count, "ADDRESS": True} for count in (2, 8)]
    for params in variants(GEMM_HALF, F16, half_device, problem, *flushes):
        found = run(half_device, GEMM_HALF, F16, params, problem, given)["out_y"]
        strict, own = (
            compare("out_y", found, expected, F32, length, f.tolerance) for f in (GEMM, GEMM_HALF)
        )
        assert own.ok and not strict.ok, params
