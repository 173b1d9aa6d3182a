"""token_shift: carries by slot, in place for decode, several sequences at once, padding."""

import numpy as np
import pytest

from kernelforge.families.token_shift import TOKEN_SHIFT
from kernelforge.traits.segments import owners
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"ADDRESS": True})
WIDTHS = pytest.mark.parametrize("bits", [32, 16])
NOWHERE = 1 << 20
"""Where a segment without tokens may say that it is: far beyond every buffer."""


def divided(given, *segments):
    """The inputs with these segments (first, count, slot)."""
    segment = np.array([[*s, 0] for s in segments], np.uint32)
    return {**given, "segment": segment, "owner": owners(segment, len(given["in_x"]))}


@WIDTHS
def test_one_token_of_each_sequence_updates_its_carry_in_place(device, rng, bits):
    problem = Problem(T=3, C=96, S=6, B=3, X=bits)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    given = divided(given, (0, 1, 2), (NOWHERE, 0, NOWHERE), (1, 1, 0))
    given["next_carry"] = given["carry"]
    expected = TOKEN_SHIFT.oracle(problem, F32, given, {})
    np.testing.assert_array_equal(expected["next_carry"][1], given["carry"][1])
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(
            device, TOKEN_SHIFT, F32, params, problem, given, shared={"carry": "next_carry"}
        )
        assert_close(TOKEN_SHIFT, problem, found, expected, params)
        np.testing.assert_array_equal(found["next_carry"], expected["next_carry"])


@WIDTHS
@pytest.mark.parametrize("count", [1, 3, 6])
def test_the_carry_is_the_last_token_of_the_segment(device, rng, bits, count):
    problem = Problem(T=6, C=64, S=2, B=1, X=bits)
    given = divided(TOKEN_SHIFT.inputs(problem, F32, rng), (0, count, 0))
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, TOKEN_SHIFT, F32, params, problem, given)
        np.testing.assert_array_equal(found["next_carry"][0], given["in_x"][count - 1])


@WIDTHS
def test_padding_leaves_every_carry_alone_and_reads_none(device, rng, bits):
    problem = Problem(T=2, C=64, S=1, B=2, X=bits)
    given = divided(TOKEN_SHIFT.inputs(problem, F32, rng), (0, 0, NOWHERE), (NOWHERE, 0, NOWHERE))
    given["carry"][:] = np.nan
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, TOKEN_SHIFT, F32, params, problem, given)
        np.testing.assert_array_equal(found["next_carry"], given["next_carry"])
        assert np.isfinite(found["out_y"]).all()


def test_a_mix_of_0_is_the_token_and_a_mix_of_1_the_one_before(device, rng):
    problem = Problem(T=5, C=32, S=2, B=1, X=32)
    given = divided(TOKEN_SHIFT.inputs(problem, F32, rng), (0, 5, 0))
    given["mix_by"][:] = [[0], [1]]
    before = np.concatenate([given["carry"], given["in_x"][:-1]])
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, TOKEN_SHIFT, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][0], given["in_x"])
        assert_close(
            TOKEN_SHIFT, problem, found, {"out_y": np.stack([given["in_x"], before])}, params
        )


@WIDTHS
def test_several_sequences_in_one_step_give_what_each_gives_alone(device, rng, bits):
    problem = Problem(T=10, C=64, S=3, B=3, X=bits)
    given = TOKEN_SHIFT.inputs(problem, F32, rng)
    segments = ((4, 5, 2), (0, 1, 0), (1, 3, 1))
    for params in variants(TOKEN_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, TOKEN_SHIFT, F32, params, problem, divided(given, *segments))
        for first, count, slot in segments:
            alone = Problem(T=count, C=64, S=3, B=1, X=bits)
            part = {**given, "in_x": given["in_x"][first : first + count]}
            part |= {name: given[name][slot : slot + 1] for name in ("carry", "next_carry")}
            part = divided(part, (0, count, 0))
            wanted = run(device, TOKEN_SHIFT, F32, params, alone, part)
            rows = found["out_y"][:, first : first + count]
            np.testing.assert_array_equal(rows, wanted["out_y"])
            np.testing.assert_array_equal(found["next_carry"][slot], wanted["next_carry"][0])


@WIDTHS
def test_two_chunks_give_what_one_gives(device, rng, bits):
    problem, half = (Problem(T=t, C=64, S=3, B=1, X=bits) for t in (8, 4))
    given = divided(TOKEN_SHIFT.inputs(problem, F32, rng), (0, 8, 0))
    params = variants(TOKEN_SHIFT, F32, device, problem)[0]
    whole = run(device, TOKEN_SHIFT, F32, params, problem, given)
    carry, rows = given["carry"], []
    for start in (0, 4):
        part = {**given, "in_x": given["in_x"][start : start + 4], "carry": carry}
        found = run(device, TOKEN_SHIFT, F32, params, half, divided(part, (0, 4, 0)))
        carry = found["next_carry"]
        rows.append(found["out_y"])
    np.testing.assert_array_equal(whole["out_y"], np.concatenate(rows, 1))
    np.testing.assert_array_equal(whole["next_carry"], carry)
