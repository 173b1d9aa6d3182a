"""lerp: mixes of 0 and 1, a mix for each token, and a slot that is not read."""

import numpy as np
import pytest

from kernelforge.families.lerp import LERP
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"ADDRESS": True})
WIDTHS = pytest.mark.parametrize("bits", [32, 16])


@WIDTHS
def test_a_mix_of_0_is_the_token_and_a_mix_of_1_the_one_before(device, rng, bits):
    problem = Problem(T=3, C=36, S=2, X=bits)
    given = LERP.inputs(problem, F32, rng)
    given["mix_by"][:, 0], given["mix_by"][:, 1] = 0, 1
    for params in variants(LERP, F32, device, problem, *SHAPES):
        found = run(device, LERP, F32, params, problem, given)
        np.testing.assert_array_equal(found["out_y"][0], given["shifted"][1])
        assert_close(LERP, problem, found, {"out_y": given["shifted"][1:]}, params)


@WIDTHS
def test_the_first_slot_is_not_read_and_tokens_do_not_see_each_other(device, rng, bits):
    problem = Problem(T=4, C=64, S=5, X=bits)
    given = LERP.inputs(problem, F32, rng)
    expected = LERP.oracle(problem, F32, given, {})
    given["shifted"][0] = np.nan
    given["shifted"][:, 2] = np.nan
    given["mix_by"][2] = np.nan
    expected["out_y"][:, 2] = np.nan
    for params in variants(LERP, F32, device, problem, *SHAPES):
        assert_close(LERP, problem, run(device, LERP, F32, params, problem, given), expected)


def test_channels_that_are_no_whole_vectors_are_refused():
    assert LERP.refuses(Problem(T=1, C=30, S=1, X=32)) == "C must be a multiple of 4, found 30"
    assert "16 or 32 bits" in str(LERP.refuses(Problem(T=1, C=32, S=1, X=8)))
