"""token_shift: the carry, in place for one token, from the last valid token for more."""

import numpy as np
import pytest

from kernelforge.families.token_shift import TOKEN_SHIFT
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, unwritten, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"ADDRESS": True})


def test_one_token_updates_its_carry_in_place(device, rng):
    problem = Problem(T=1, C=96, S=6)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    expected = TOKEN_SHIFT.oracle(problem, F32, given, {})
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(
            device, TOKEN_SHIFT, F32, params, problem, given, shared={"next_carry": "carry"}
        )
        assert_close(TOKEN_SHIFT, problem, found, expected, params)


@pytest.mark.parametrize("valid", [1, 3, 6])
def test_the_carry_is_the_last_valid_token(device, rng, valid):
    problem = Problem(T=6, C=64, S=2)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    given["step"][0] = valid
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, TOKEN_SHIFT, F32, params, problem, given)
        np.testing.assert_array_equal(found["next_carry"], given["in_x"][valid - 1])


def test_without_a_valid_token_the_carry_is_left_alone(device, rng):
    problem = Problem(T=2, C=64, S=1)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    given["step"][0] = 0
    for params in variants(TOKEN_SHIFT, F32, device, problem):
        found = run(device, TOKEN_SHIFT, F32, params, problem, given)
        assert unwritten(found["next_carry"]).all()


def test_a_mix_of_0_is_the_token_and_a_mix_of_1_the_one_before(device, rng):
    problem = Problem(T=5, C=32, S=2)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    given["mix_by"][:] = [[0], [1]]
    before = np.concatenate([given["carry"][None], given["in_x"][:-1]])
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        now, then = run(device, TOKEN_SHIFT, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(now, given["in_x"])
        np.testing.assert_allclose(then, before, atol=1e-6)


def test_two_chunks_give_what_one_gives(device, rng):
    problem, half = Problem(T=8, C=64, S=3), Problem(T=4, C=64, S=3)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    params = variants(TOKEN_SHIFT, F32, device, problem)[0]
    whole = run(device, TOKEN_SHIFT, F32, params, problem, given)
    step = np.array([4, 0, 0, 0], np.uint32)
    carry, rows = given["carry"], []
    for start in (0, 4):
        part = {**given, "in_x": given["in_x"][start : start + 4], "carry": carry, "step": step}
        found = run(device, TOKEN_SHIFT, F32, params, half, part)
        carry = found["next_carry"]
        rows.append(found["out_y"])
    np.testing.assert_array_equal(whole["out_y"], np.concatenate(rows, 1))
    np.testing.assert_array_equal(whole["next_carry"], carry)
