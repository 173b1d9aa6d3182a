"""head_norm: heads on their own, constant heads, and a gate that is open, closed or not there."""

import numpy as np
import pytest

from kernelforge.families.head_norm import HEAD_NORM
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(T=3, H=2, N=32, P=256)
SHAPES = (
    {"WORKGROUP": 8, "REDUCE": "subgroup"},
    {"WORKGROUP": 4, "REDUCE": "subgroup"},
    {"WORKGROUP": 128, "REDUCE": "hybrid"},
    {"WORKGROUP": 16, "REDUCE": "shared", "ADDRESS": True},
)
EPS = 64e-5


def each(device, given, constants):
    for params in variants(HEAD_NORM, F32, device, PROBLEM, *SHAPES):
        yield run(device, HEAD_NORM, F32, params, PROBLEM, given, constants)


@pytest.mark.parametrize("column", [0, 1, 64, 192])
def test_the_gate_is_read_from_its_columns_and_no_other(device, rng, column):
    given = HEAD_NORM.inputs(PROBLEM, F32, rng)
    beside = np.ones(256, bool)
    beside[column : column + 64] = False
    given["in_p"][:, beside] = np.nan
    constants = {"eps": EPS, "gated": 1, "column": column}
    expected = HEAD_NORM.oracle(PROBLEM, F32, given, constants)
    for found in each(device, given, constants):
        assert np.isfinite(found["out_y"]).all()
        assert_close(HEAD_NORM, PROBLEM, found, expected)


def test_without_a_gate_its_buffer_is_not_read(device, rng):
    given = HEAD_NORM.inputs(PROBLEM, F32, rng)
    given["in_p"][:] = np.nan
    constants = {"eps": EPS, "gated": 0, "column": 0}
    open_gate = {**given, "in_p": np.ones_like(given["in_p"])}
    expected = HEAD_NORM.oracle(PROBLEM, F32, open_gate, {**constants, "gated": 1})
    for found in each(device, given, constants):
        assert_close(HEAD_NORM, PROBLEM, found, expected)


@pytest.mark.parametrize("value", [0.0, 1.0, -30.0])
def test_a_head_without_variance_leaves_its_bias(device, rng, value):
    given = HEAD_NORM.inputs(PROBLEM, F32, rng)
    given["in_y"][:] = value
    bias = np.broadcast_to(given["param"][1], (3, 2, 32))
    for found in each(device, given, {"eps": EPS, "gated": 0, "column": 0}):
        # The mean of equal numbers may be off by an ulp, which 1 / sqrt(eps) makes 40 times larger.
        np.testing.assert_allclose(found["out_y"], bias, rtol=1e-4, atol=1e-3)


def test_heads_are_normalised_on_their_own(device, rng):
    given = HEAD_NORM.inputs(PROBLEM, F32, rng)
    given["in_y"][:, 0] *= 1000
    constants = {"eps": EPS, "gated": 1, "column": 32}
    expected = HEAD_NORM.oracle(PROBLEM, F32, given, constants)
    for found in each(device, given, constants):
        assert_close(HEAD_NORM, PROBLEM, found, expected)


@pytest.mark.parametrize("eps", [1e-5, 64e-5, 1.0])
def test_eps_decides_where_the_variance_is_small(device, rng, eps):
    given = HEAD_NORM.inputs(PROBLEM, F32, rng)
    given["in_y"] *= np.float32(1e-3)
    constants = {"eps": eps, "gated": 1, "column": 0}
    expected = HEAD_NORM.oracle(PROBLEM, F32, given, constants)
    for found in each(device, given, constants):
        assert_close(HEAD_NORM, PROBLEM, found, expected)
