"""norm_shift: the same as layer norm and then token shift, with the carry in place."""

import numpy as np
import pytest

from kernelforge.families.layer_norm import LAYER_NORM
from kernelforge.families.norm_shift import NORM_SHIFT
from kernelforge.families.token_shift import TOKEN_SHIFT
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"REDUCE": "shared"}, {"ADDRESS": True})


def test_the_carry_is_updated_in_place(device, rng):
    problem = Problem(C=96, S=6)
    given = NORM_SHIFT.inputs(problem, F32, rng)
    expected = NORM_SHIFT.oracle(problem, F32, given, {"eps": 1e-5})
    for params in variants(NORM_SHIFT, F32, device, problem, *SHAPES):
        found = run(device, NORM_SHIFT, F32, params, problem, given, shared={"next_carry": "carry"})
        assert_close(NORM_SHIFT, problem, found, expected, params)


def test_its_oracle_is_layer_norm_and_then_token_shift(rng):
    problem, eps = Problem(C=64, S=3), {"eps": 1e-5}
    given = NORM_SHIFT.inputs(problem, F32, rng)
    rows = {**given, "in_x": given["in_x"][None]}
    normed = LAYER_NORM.oracle(Problem(T=1, C=64, G=1), F32, rows, eps)["out_y"]
    shifted = TOKEN_SHIFT.oracle(Problem(T=1, C=64, S=3), F32, {**rows, "in_x": normed}, {})
    fused = NORM_SHIFT.oracle(problem, F32, given, eps)
    np.testing.assert_allclose(fused["out_y"], shifted["out_y"][:, 0], rtol=1e-12)
    np.testing.assert_allclose(fused["next_carry"], shifted["next_carry"], rtol=1e-12)
