"""layer_norm: large means, small variances, the last row of each segment."""

import numpy as np
import pytest

from kernelforge.families.layer_norm import LAYER_NORM
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 8, "REDUCE": "subgroup"},
    {"WORKGROUP": 4, "REDUCE": "subgroup"},
    {"WORKGROUP": 128, "REDUCE": "hybrid", "ADDRESS": True},
    {"WORKGROUP": 32, "REDUCE": "shared"},
)
WIDTHS = pytest.mark.parametrize("bits", [32, 16])
NOWHERE = 1 << 20
"""Where a segment without tokens may say that it begins: far beyond every buffer."""


@WIDTHS
@pytest.mark.parametrize("count", [1, 4, 7])
def test_last_picks_the_row_of_a_sequence_s_last_token(device, rng, bits, count):
    rows, one = Problem(T=7, C=96, X=bits), Problem(T=1, C=96, X=bits)
    given = LAYER_NORM.inputs(rows, F32, rng)
    given["segment"] = np.array([[0, count, 0, 0]], np.uint32)
    expected = LAYER_NORM.oracle(rows, F32, given, {"eps": 1e-5, "last": 0})["out_y"]
    for params in variants(LAYER_NORM, F32, device, one, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, one, given, {"eps": 1e-5, "last": 1})
        assert_close(LAYER_NORM, one, found, {"out_y": expected[count - 1 : count]}, params)


@WIDTHS
def test_last_serves_several_segments_and_padding_reads_nothing_elsewhere(device, rng, bits):
    rows, three = Problem(T=9, C=64, X=bits), Problem(T=3, C=64, X=bits)
    given = LAYER_NORM.inputs(rows, F32, rng)
    given["segment"] = np.array([[3, 5, 2, 0], [NOWHERE, 0, NOWHERE, 0], [0, 3, 0, 9]], np.uint32)
    expected = LAYER_NORM.oracle(rows, F32, given, {"eps": 1e-5, "last": 0})["out_y"]
    for params in variants(LAYER_NORM, F32, device, three, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, three, given, {"eps": 1e-5, "last": 1})
        assert_close(LAYER_NORM, three, found, {"out_y": expected[[7, 0, 2]]}, params)


@WIDTHS
@pytest.mark.parametrize("eps", [1e-5, 64e-5, 1.0])
def test_eps_decides_where_the_variance_is_small(device, rng, bits, eps):
    problem = Problem(T=3, C=64, X=bits)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"] *= given["in_x"].dtype.type(1e-3)
    constants = {"eps": eps, "last": 0}
    expected = LAYER_NORM.oracle(problem, F32, given, constants)
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given, constants)
        assert_close(LAYER_NORM, problem, found, expected, params)


def test_a_constant_row_gives_the_bias(device, rng):
    problem = Problem(T=2, C=64, X=32)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"][:] = [[0.0], [-3.5]]
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)
        assert_close(LAYER_NORM, problem, found, {"out_y": np.tile(given["bias"], (2, 1))})


def test_a_large_mean_does_not_cancel(device, rng):
    """With E[x^2] - E[x]^2 nothing would be left of a variance of 1 beside a mean of 4096."""
    problem = Problem(T=3, C=256, X=32)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"] = rng.standard_normal((3, 256)).astype(np.float32) + np.float32(4096)
    constants = dict(LAYER_NORM.constants(problem))
    expected = LAYER_NORM.oracle(problem, F32, given, constants)["out_y"]
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)["out_y"]
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=str(params))


def test_a_sum_beyond_float16_does_not_overflow_16_bit_activations(device, rng):
    problem = Problem(T=2, C=1024, X=16)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"] = rng.uniform(20000, 65000, (2, 1024)).astype(np.float16)
    constants = dict(LAYER_NORM.constants(problem))
    expected = LAYER_NORM.oracle(problem, F32, given, constants)
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)
        assert_close(LAYER_NORM, problem, found, expected, params)
