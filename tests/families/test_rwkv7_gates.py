"""rwkv7_gates: the first layer's v, keys of zero, and gates at their ends."""

import numpy as np
import pytest

from kernelforge.families.rwkv7_gates import RWKV7_GATES
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(T=3, H=2, N=32, P=224)
SHAPES = (
    {"WORKGROUP": 8, "REDUCE": "subgroup"},
    {"WORKGROUP": 4, "REDUCE": "subgroup"},
    {"WORKGROUP": 128, "REDUCE": "hybrid"},
    {"WORKGROUP": 16, "REDUCE": "shared", "ADDRESS": True},
)
R, W, K, V, A, B = range(6)


def each(device, given, first):
    for params in variants(RWKV7_GATES, F32, device, PROBLEM, *SHAPES):
        yield run(device, RWKV7_GATES, F32, params, PROBLEM, given, {"first": first})


def test_the_first_layer_stores_its_v_and_does_not_mix(device, rng):
    given = RWKV7_GATES.inputs(PROBLEM, F32, rng)
    v = given["proj"][:, 128:192].reshape(3, 2, 32)
    del given["v_first"]  # nobody has written it yet
    for found in each(device, given, 1):
        np.testing.assert_array_equal(found["v_first"], v)
        np.testing.assert_array_equal(found["out_s"][V], v)
        assert np.isfinite(found["out_s"]).all()


def test_later_layers_mix_and_leave_the_first_v_alone(device, rng):
    given = RWKV7_GATES.inputs(PROBLEM, F32, rng)
    expected = RWKV7_GATES.oracle(PROBLEM, F32, given, {"first": 0})
    for found in each(device, given, 0):
        np.testing.assert_array_equal(found["v_first"], given["v_first"])
        assert_close(RWKV7_GATES, PROBLEM, found, expected)


@pytest.mark.parametrize("spoil", ["proj", "param"])
def test_a_key_of_zero_is_not_divided_by_zero(device, rng, spoil):
    given = RWKV7_GATES.inputs(PROBLEM, F32, rng)
    if spoil == "proj":
        given["proj"][:, 64:128] = 0
    else:
        given["param"][3] = 0
    expected = RWKV7_GATES.oracle(PROBLEM, F32, given, {"first": 0})
    for found in each(device, given, 0):
        assert np.isfinite(found["out_s"]).all()
        assert not found["out_s"][A].any()
        assert not found["out_s"][B].any()
        assert_close(RWKV7_GATES, PROBLEM, found, expected)


def test_keys_are_normalised_per_head_and_token(device, rng):
    given = RWKV7_GATES.inputs(PROBLEM, F32, rng)
    given["proj"][:, 64:96] *= 1000  # one head alone
    for found in each(device, given, 0):
        np.testing.assert_allclose(np.linalg.norm(found["out_s"][A], axis=-1), 1, rtol=1e-5)


def test_the_decay_stays_within_its_range_however_large_the_gate(device, rng):
    given = RWKV7_GATES.inputs(PROBLEM, F32, rng)
    given["lora"][:, 0] = rng.choice([-200, -20, 0, 20, 200], (3, 2, 32))
    for found in each(device, given, 0):
        decay = found["out_s"][W]
        assert (decay >= np.float32(np.exp(-np.exp(-0.5))) - 1e-6).all()
        assert (decay <= 1).all()
        assert np.isfinite(found["out_s"]).all()
