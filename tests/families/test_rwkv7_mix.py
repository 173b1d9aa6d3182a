"""rwkv7_mix: equal to the three kernels it stands for, over several tokens, and its ends."""

import numpy as np
import pytest

from kernelforge.families.rwkv7_gates import RWKV7_GATES
from kernelforge.families.rwkv7_mix import RWKV7_MIX
from kernelforge.families.rwkv7_readout import RWKV7_READOUT
from kernelforge.families.wkv7 import WKV7
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(T=7, H=2, N=32, P=224, B=3)
SHAPES = (
    {"WORKGROUP": 8, "REDUCE": "subgroup", "LANES": 8},
    {"WORKGROUP": 4, "REDUCE": "subgroup", "LANES": 4, "ADDRESS": True, "KEEP": "state"},
    {"WORKGROUP": 16, "LANES": 4, "ROWS": 2, "ADDRESS": True, "KEEP": "all"},
    {"WORKGROUP": 32, "LANES": 1, "REDUCE": "shared", "ADDRESS": True},
)
CONSTANTS = {"eps": 64e-5}


def each(device, given, first=0):
    for params in variants(RWKV7_MIX, F32, device, PROBLEM, *SHAPES):
        yield run(device, RWKV7_MIX, F32, params, PROBLEM, given, {"first": first, **CONSTANTS})


def separately(device, given, first):
    """What the default variants of the three families make of the same input."""

    def one(family, problem, arrays, constants=None):
        params = variants(family, F32, device, problem)[0]
        return run(device, family, F32, params, problem, arrays, constants)

    t, h, n, p, b = (PROBLEM[name] for name in "THNPB")
    gates = one(
        RWKV7_GATES,
        Problem(T=t, H=h, N=n, P=p),
        {name: given[name] for name in ("proj", "lora", "v_first")}
        | {"param": given["gate_param"]},
        {"first": first},
    )
    moved = one(
        WKV7,
        Problem(T=t, H=h, N=n, B=b),
        {"in_s": gates["out_s"], **{name: given[name] for name in ("state", "segment", "out_y")}},
    )
    read = one(
        RWKV7_READOUT,
        Problem(T=t, H=h, N=n),
        {"in_y": moved["out_y"], "in_s": gates["out_s"], "lora": given["lora"]}
        | {"param": given["read_param"]},
        CONSTANTS,
    )
    return {"out_y": read["out_y"], "state": moved["state"], "v_first": gates["v_first"]}


def covering(given):
    """Every token in a segment, of several tokens each; the last segment is padding."""
    given["segment"] = np.uint32([[3, 4, 1, 5], [0, 3, 2, 0], [0, 0, 0, 9]])
    return given


@pytest.mark.parametrize("first", [0, 1])
def test_it_is_what_gates_recurrence_and_readout_give_one_after_another(device, rng, first):
    given = covering(RWKV7_MIX.inputs(PROBLEM, F32, rng))
    expected = separately(device, given, first)
    for found in each(device, given, first):
        assert_close(RWKV7_MIX, PROBLEM, found, expected)


def test_tokens_and_slots_without_a_segment_stay_as_they_are(device, rng):
    given = RWKV7_MIX.inputs(PROBLEM, F32, rng)
    given["segment"] = np.uint32([[4, 2, 2, 0], [1, 0, 0, 3], [0, 3, 1, 0]])
    for found in each(device, given, first=1):
        for token in (3, 6):
            np.testing.assert_array_equal(found["out_y"][token], given["out_y"][token])
            np.testing.assert_array_equal(found["v_first"][token], given["v_first"][token])
        np.testing.assert_array_equal(found["state"][0], given["state"][0])
        assert (found["state"][1:] != given["state"][1:]).any((1, 2, 3)).all()


def test_a_segment_that_says_more_than_there_is_stays_inside_the_step(device, rng):
    given = RWKV7_MIX.inputs(PROBLEM, F32, rng)
    given["segment"] = np.uint32([[5, 9, 0, 0], [7, 4, 1, 0], [2**32 - 1, 1, 2, 0]])
    honest = {**given, "segment": np.uint32([[5, 2, 0, 0], [0, 0, 1, 0], [0, 0, 2, 0]])}
    for found, expected in zip(each(device, given), each(device, honest), strict=True):
        for name in ("out_y", "state"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_the_first_layer_stores_its_v_and_reads_none(device, rng):
    given = covering(RWKV7_MIX.inputs(PROBLEM, F32, rng))
    v = given["proj"][:, 128:192].reshape(7, 2, 32)
    expected = RWKV7_MIX.oracle(PROBLEM, F32, given, {"first": 1, **CONSTANTS})
    del given["v_first"]  # nobody has written it yet
    for found in each(device, given, first=1):
        np.testing.assert_array_equal(found["v_first"], v)
        assert_close(RWKV7_MIX, PROBLEM, found, expected)


def test_a_key_of_zero_is_not_divided_by_zero(device, rng):
    given = covering(RWKV7_MIX.inputs(PROBLEM, F32, rng))
    given["proj"][:, 64:128] = 0
    expected = RWKV7_MIX.oracle(PROBLEM, F32, given, {"first": 0, **CONSTANTS})
    for found in each(device, given):
        assert all(np.isfinite(found[name]).all() for name in found)
        assert_close(RWKV7_MIX, PROBLEM, found, expected)


def test_heads_do_not_see_each_other(device, rng):
    given = covering(RWKV7_MIX.inputs(PROBLEM, F32, rng))
    changed = {name: array.copy() for name, array in given.items()}
    changed["proj"][:, 32:64] += 1  # the receptance of the second head
    changed["state"][:, 1] = 7
    for one, two in zip(each(device, given), each(device, changed), strict=True):
        for name in ("out_y", "state"):
            np.testing.assert_array_equal(one[name][:, 0], two[name][:, 0])
            assert not np.array_equal(one[name][:, 1], two[name][:, 1])
