"""norm_gemv: the same as layer norm, token shift and then the products, and its padding."""

import numpy as np
import pytest

from kernelforge.families.gemv import GEMV
from kernelforge.families.norm_gemv import NORM_GEMV
from kernelforge.families.norm_shift import NORM_SHIFT
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ACTIVATIONS, route_code
from kernelforge_runtime.dtypes import BF16, F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"REDUCE": "subgroup", "WORKGROUP": 8, "LANES": 8},
    {"REDUCE": "subgroup", "WORKGROUP": 16, "LANES": 4, "INPUT": "staged"},
    {"REDUCE": "butterfly", "WORKGROUP": 8, "LANES": 4, "ROWS": 8, "VEC": 1},
    {"REDUCE": "hybrid", "WORKGROUP": 64, "LANES": 64, "LAYOUT": "by4"},
    {"REDUCE": "shared", "WORKGROUP": 16, "LANES": 4, "VEC": 2, "ADDRESS": True},
    {"ADDRESS": True, "WORD": 64},
)
NOWHERE = 1 << 20
"""Where a segment without tokens may say that it is: far beyond every buffer."""
EPS = {"eps": 1e-5}


def test_its_oracle_is_norm_and_token_shift_and_then_the_products(rng):
    problem = Problem(M=96, K=64, S=3, T=5, X=32, Y=32)
    given = NORM_GEMV.inputs(problem, F32, rng)
    given["route"][:, 0] = [128, 0, 64]
    alive = given["segment"][:, 1] > 0
    shift = {
        **given,
        "weight": given["norm_scale"],
        "bias": given["norm_bias"],
        "out_y": np.zeros((3, 5, 64), np.float32),
    }
    shifted = NORM_SHIFT.oracle(Problem(T=5, C=64, S=3, X=32), F32, shift, EPS)
    route = given["route"].copy()
    route[:, 0] *= 5
    route[:, 1] = 64
    rows = {**given, "in_x": shifted["out_y"], "route": route}
    product = GEMV.oracle(problem, F32, rows, {})
    fused = NORM_GEMV.oracle(problem, F32, given, EPS)
    np.testing.assert_allclose(
        fused["out_y"][alive], product["out_y"][alive], rtol=1e-10, atol=1e-10
    )
    np.testing.assert_array_equal(fused["out_y"][~alive], given["out_y"][~alive])
    np.testing.assert_allclose(fused["next_carry"], shifted["next_carry"], rtol=1e-12)


@pytest.mark.parametrize("bits", [32, 16])
def test_every_block_of_rows_has_its_own_mix_and_epilogue(device, rng, bits):
    problem = Problem(M=32 * len(ACTIVATIONS), K=96, S=3, T=1, X=bits, Y=32)
    given = NORM_GEMV.inputs(problem, BF16, rng)
    given["route"][:, 0] = [192, 0, 96, 0, 192]
    given["route"][:, 2] = [route_code(name) for name in ACTIVATIONS]
    expected = NORM_GEMV.oracle(problem, BF16, given, EPS)
    for params in variants(NORM_GEMV, BF16, device, problem, *SHAPES):
        found = run(device, NORM_GEMV, BF16, params, problem, given)
        assert_close(NORM_GEMV, problem, found, expected, params)


PADDED = [
    [[NOWHERE, 0, NOWHERE, 0], [1, 1, 0, 7]],
    [[0, 1, 3, 5], [NOWHERE, 0, NOWHERE, 0], [2, 1, 0, 7], [3, 1, 2, 0]],
]


@pytest.mark.parametrize("segment", PADDED, ids=["of 2", "of 4"])
def test_padding_touches_nothing_though_it_says_it_is_far_away(device, rng, segment):
    problem = Problem(M=64, K=64, S=2, T=len(segment), X=32, Y=32)
    given = NORM_GEMV.inputs(problem, F32, rng)
    given["segment"][:] = segment
    padding = segment.index(PADDED[0][0])
    expected = NORM_GEMV.oracle(problem, F32, given, EPS)
    # One token at a time, and several that share the weights.
    tried = variants(NORM_GEMV, F32, device, problem, *({"COLS": cols} for cols in (1, 2, 4)))
    assert len({params["COLS"] for params in tried}) == 2
    for params in tried:
        found = run(device, NORM_GEMV, F32, params, problem, given)
        assert_close(NORM_GEMV, problem, found, expected, params)
        kept = [slot for slot in range(len(segment)) if slot not in [s[2] for s in segment]]
        np.testing.assert_array_equal(found["next_carry"][kept], given["next_carry"][kept])
        np.testing.assert_array_equal(found["out_y"][padding], given["out_y"][padding])


def test_a_row_whose_numbers_are_all_the_same_is_normed_to_its_bias(device, rng):
    problem = Problem(M=32, K=64, S=1, T=1, X=32, Y=32)
    given = NORM_GEMV.inputs(problem, F32, rng)
    given["in_x"][:] = 3
    for params in variants(NORM_GEMV, F32, device, problem, *SHAPES):
        found = run(device, NORM_GEMV, F32, params, problem, given)
        np.testing.assert_allclose(found["next_carry"][0], given["norm_bias"], rtol=1e-6)
