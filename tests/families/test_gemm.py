"""gemm: token counts that fit no tile, both forms, routes with strides of their own."""

import numpy as np
import pytest

from kernelforge.families.gemm import GEMM
from kernelforge.families.gemv import GEMV
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, F32, encode
from tests.families.running import UNWRITTEN, assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SMALL_TILE = {"FORM": "tile", "BM": 16, "BT": 8, "BK": 16, "TM": 2, "TT": 4, "WORKGROUP": 16}
TALL_TILE = {"FORM": "tile", "BM": 32, "BT": 64, "BK": 32, "TM": 4, "TT": 8, "WORKGROUP": 64}
BROADCAST = {"FORM": "broadcast", "WORKGROUP": 8, "BM": 32, "BT": 32, "BK": 32, "TM": 4, "TT": 12}
FORMS = (SMALL_TILE, TALL_TILE, BROADCAST, {**BROADCAST, "TT": 1, "TM": 1, "ADDRESS": True})


@pytest.mark.parametrize("tokens", [1, 7, 33, 65])
def test_token_counts_that_fit_no_tile_are_right(device, rng, tokens):
    problem = Problem(M=64, K=96, S=2, T=tokens)
    given = GEMM.inputs(problem, F32, rng)
    expected = GEMM.oracle(problem, F32, given, {})
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


@pytest.mark.parametrize("precision", [F16, BF16, F32], ids=str)
def test_both_forms_agree_on_sums_that_are_exact(device, rng, precision):
    problem = Problem(M=64, K=64, S=1, T=19)
    whole = rng.integers(-8, 9, (64, 64)).astype(np.float32)
    given = GEMM.inputs(problem, precision, rng)
    given["weight"] = encode(whole, precision)
    given["in_x"] = rng.integers(-8, 9, (1, 19, 64)).astype(np.float32)
    given["route"][:, 2] = 0
    exact = given["in_x"][0] @ whole.T
    tried = variants(GEMM, precision, device, problem, *FORMS, {**SMALL_TILE, "UNPACK": "shift"})
    for params in tried:
        found = run(device, GEMM, precision, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))
    if device.info.slug == "llvmpipe":
        assert {p["FORM"] for p in tried} == {"tile", "broadcast"}


def test_rows_are_read_with_the_stride_of_their_route(device, rng):
    """Columns 32 to 95 of an input that is 160 wide: how a LoRA reads its part of a projection."""
    problem = Problem(M=32, K=64, S=1, T=9)
    wide = rng.standard_normal((9, 160)).astype(np.float32)
    given = GEMM.inputs(problem, F32, rng)
    given["in_x"] = wide
    given["route"][:] = [[32, 160, 0, 0]]
    expected = {"out_y": wide[:, 32:96].astype(np.float64) @ given["weight"].T}
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


def test_each_block_has_its_own_epilogue_and_the_residual_is_added_once(device, rng):
    problem = Problem(M=160, K=32, S=1, T=5)
    given = GEMM.inputs(problem, F32, rng)
    given["route"][:, 2] = range(5)
    expected = GEMM.oracle(problem, F32, given, {})
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


def test_one_token_is_what_gemv_gives(device, rng):
    problem = Problem(M=64, K=64, S=2, T=1)
    given = GEMM.inputs(problem, F16, rng)
    flat = {**given, "in_x": given["in_x"][:, 0], "out_y": given["out_y"][0]}
    vector = Problem(M=64, K=64, S=2)
    params = variants(GEMV, F16, device, vector)[0]
    expected = run(device, GEMV, F16, params, vector, flat)["out_y"]
    for params in variants(GEMM, F16, device, problem, *FORMS):
        found = run(device, GEMM, F16, params, problem, given)["out_y"]
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_written_behind_the_last_token(device, rng):
    problem = Problem(M=32, K=32, S=1, T=3)
    given = GEMM.inputs(problem, F32, rng)
    given["out_y"] = np.full((64, 32), UNWRITTEN, np.uint32).view(np.float32)
    given["route"][:, 2] = 0
    given["in_x"] = np.concatenate([given["in_x"][0], np.full((61, 32), np.nan, np.float32)])
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)["out_y"]
        assert np.isfinite(found).all(), params
