"""rwkv7_readout: constant rows, the bonus alone, and a closed gate."""

import numpy as np
import pytest

from kernelforge.families.rwkv7_readout import RWKV7_READOUT
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(T=3, H=2, N=32)
SHAPES = (
    {"WORKGROUP": 8, "REDUCE": "subgroup"},
    {"WORKGROUP": 4, "REDUCE": "subgroup"},
    {"WORKGROUP": 128, "REDUCE": "hybrid"},
    {"WORKGROUP": 16, "REDUCE": "shared", "ADDRESS": True},
)
EPS = {"eps": 64e-5}


def each(device, given):
    for params in variants(RWKV7_READOUT, F32, device, PROBLEM, *SHAPES):
        yield run(device, RWKV7_READOUT, F32, params, PROBLEM, given)["out_y"]


@pytest.mark.parametrize("value", [0.0, 1.0, -30.0])
def test_a_head_without_variance_leaves_bias_and_bonus(device, rng, value):
    given = RWKV7_READOUT.inputs(PROBLEM, F32, rng)
    given["in_y"][:] = value
    expected = RWKV7_READOUT.oracle(PROBLEM, F32, given, EPS)["out_y"]
    for found in each(device, given):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_heads_are_normalised_on_their_own(device, rng):
    given = RWKV7_READOUT.inputs(PROBLEM, F32, rng)
    given["in_y"][:, 0] *= 1000
    expected = RWKV7_READOUT.oracle(PROBLEM, F32, given, EPS)
    for found in each(device, given):
        assert_close(RWKV7_READOUT, PROBLEM, {"out_y": found}, expected)


def test_without_weight_and_bias_only_the_bonus_is_left(device, rng):
    given = RWKV7_READOUT.inputs(PROBLEM, F32, rng)
    given["param"][1:] = 0
    r, k, v = (given["in_s"][i].astype(np.float64) for i in (0, 2, 3))
    bonus = (r * k * given["param"][0]).sum(-1, keepdims=True) * v
    for found in each(device, given):
        assert_close(
            RWKV7_READOUT, PROBLEM, {"out_y": found}, {"out_y": bonus * given["lora"][:, 3]}
        )


def test_a_closed_gate_lets_nothing_through_and_the_other_loras_do_not_matter(device, rng):
    given = RWKV7_READOUT.inputs(PROBLEM, F32, rng)
    given["lora"][:, :3] = np.nan
    given["in_s"][[1, 4, 5]] = np.nan
    given["lora"][1, 3] = 0
    for found in each(device, given):
        assert np.isfinite(found).all()
        assert not found[1].any()
        assert found[[0, 2]].any()
