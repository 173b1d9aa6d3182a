"""norm_shift: the same as layer norm and then token shift, with the carries in place."""

import numpy as np
import pytest

from kernelforge.families.layer_norm import LAYER_NORM
from kernelforge.families.norm_shift import NORM_SHIFT
from kernelforge.families.token_shift import TOKEN_SHIFT
from kernelforge.traits.segments import owners
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"REDUCE": "shared"}, {"ADDRESS": True})
WIDTHS = pytest.mark.parametrize("bits", [32, 16])
NOWHERE = 1 << 20
"""Where a segment without tokens may say that it is: far beyond every buffer."""


@WIDTHS
def test_the_carries_are_updated_in_place_and_padding_touches_nothing(device, rng, bits):
    problem = Problem(T=4, C=96, S=6, X=bits)
    given = NORM_SHIFT.inputs(problem, F32, rng)
    given["segment"][:] = [[0, 1, 3, 5], [NOWHERE, 0, NOWHERE, 0], [2, 1, 0, 7], [3, 1, 2, 0]]
    given["next_carry"] = given["carry"]
    expected = NORM_SHIFT.oracle(problem, F32, given, {"eps": 1e-5})
    for params in variants(NORM_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, NORM_SHIFT, F32, params, problem, given, shared={"carry": "next_carry"})
        assert_close(NORM_SHIFT, problem, found, expected, params)
        np.testing.assert_array_equal(found["next_carry"][1], given["carry"][1])
        np.testing.assert_array_equal(found["out_y"][:, 1], given["out_y"][:, 1])


@WIDTHS
def test_a_batch_gives_bit_for_bit_what_each_token_gives_alone(device, rng, bits):
    problem, one = (Problem(T=t, C=68, S=2, X=bits) for t in (3, 1))
    given = NORM_SHIFT.inputs(problem, F32, rng)
    given["segment"][:] = [[0, 1, 1, 5], [1, 1, 2, 0], [2, 1, 0, 7]]
    for params in variants(NORM_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, NORM_SHIFT, F32, params, problem, given)
        for t, slot in enumerate((1, 2, 0)):
            part = {
                **given,
                "in_x": given["in_x"][t : t + 1],
                "carry": given["carry"][slot : slot + 1],
                "segment": np.array([[0, 1, 0, 0]], np.uint32),
            }
            part = {k: v for k, v in part.items() if k not in ("out_y", "next_carry")}
            alone = run(device, NORM_SHIFT, F32, params, one, part)
            np.testing.assert_array_equal(found["out_y"][:, t], alone["out_y"][:, 0])
            np.testing.assert_array_equal(found["next_carry"][slot], alone["next_carry"][0])


def test_its_oracle_is_layer_norm_and_then_token_shift(rng):
    problem, eps = Problem(T=5, C=64, S=3, X=32), {"eps": 1e-5, "last": 0}
    given = NORM_SHIFT.inputs(problem, F32, rng)
    alive = given["segment"][:, 1] > 0
    rows = {**given, "owner": owners(given["segment"], 5)}
    normed = LAYER_NORM.oracle(Problem(T=5, C=64, X=32), F32, rows, eps)["out_y"]
    shift = Problem(T=5, C=64, S=3, B=5, X=32)
    shifted = TOKEN_SHIFT.oracle(shift, F32, {**rows, "in_x": normed}, {})
    fused = NORM_SHIFT.oracle(problem, F32, given, eps)
    np.testing.assert_allclose(
        fused["out_y"][:, alive], shifted["out_y"][:, alive], rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(fused["next_carry"], shifted["next_carry"], rtol=1e-12)
