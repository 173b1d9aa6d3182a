"""layer_norm: groups, the last valid row, eps, and means far from zero."""

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


@pytest.mark.parametrize("valid", [1, 4, 7])
def test_last_picks_the_row_before_the_step(device, rng, valid):
    rows, one = Problem(T=7, C=96, G=1), Problem(T=1, C=96, G=1)
    given = LAYER_NORM.inputs(rows, F32, rng)
    given["step"][0] = valid
    expected = LAYER_NORM.oracle(rows, F32, given, {"eps": 1e-5})["out_y"][valid - 1 : valid]
    for params in variants(LAYER_NORM, F32, device, one, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, one, given, {"eps": 1e-5, "last": 1})
        assert_close(LAYER_NORM, one, found, {"out_y": expected}, params)


@pytest.mark.parametrize("eps", [1e-5, 64e-5, 1.0])
def test_eps_decides_where_the_variance_is_small(device, rng, eps):
    problem = Problem(T=3, C=64, G=1)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"] *= np.float32(1e-3)
    expected = LAYER_NORM.oracle(problem, F32, given, {"eps": eps})
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given, {"eps": eps, "last": 0})
        assert_close(LAYER_NORM, problem, found, expected, params)


def test_a_constant_row_gives_the_bias(device, rng):
    problem = Problem(T=2, C=64, G=1)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"][:] = [[0.0], [-3.5]]
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)["out_y"]
        np.testing.assert_allclose(found, np.tile(given["bias"], (2, 1)), atol=1e-5)


def test_a_large_mean_does_not_cancel(device, rng):
    """With E[x^2] - E[x]^2 nothing would be left of a variance of 1 beside a mean of 4096."""
    problem = Problem(T=3, C=256, G=1)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"] = rng.standard_normal((3, 256)).astype(np.float32) + np.float32(4096)
    expected = LAYER_NORM.oracle(problem, F32, given, {"eps": 1e-5})["out_y"]
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)["out_y"]
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=str(params))


def test_groups_are_normalised_on_their_own(device, rng):
    problem = Problem(T=2, C=128, G=4)
    given = LAYER_NORM.inputs(problem, F32, rng)
    given["in_x"].reshape(2, 4, 32)[:] *= np.float32([1, 100, 0.01, 1])[None, :, None]
    expected = LAYER_NORM.oracle(problem, F32, given, {"eps": 1e-5})
    for params in variants(LAYER_NORM, F32, device, problem, *SHAPES):
        found = run(device, LAYER_NORM, F32, params, problem, given)
        assert_close(LAYER_NORM, problem, found, expected, params)
