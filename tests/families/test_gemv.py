"""gemv: routes, epilogues, reductions, and the edges of its weight formats."""

import numpy as np
import pytest

from kernelforge.families.gemv import GEMV, decoded, encoded
from kernelforge.traits.choices import epilogue
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ACTIVATIONS, route_code
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, decode, encode
from tests.families.running import assert_close, keeps_subnormals, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"REDUCE": "subgroup", "WORKGROUP": 8, "LANES": 8},
    {"REDUCE": "subgroup", "WORKGROUP": 4, "LANES": 4},
    {"REDUCE": "subgroup", "WORKGROUP": 32, "LANES": 8, "ROWS": 4},
    {"REDUCE": "hybrid", "WORKGROUP": 64, "LANES": 64, "ROWS": 4},
    {"REDUCE": "shared", "WORKGROUP": 64, "LANES": 16, "ROWS": 8, "VEC": 2},
    {"REDUCE": "shared", "WORKGROUP": 16, "LANES": 4, "ROWS": 1, "VEC": 1, "ADDRESS": True},
)
BUTTERFLY = {"REDUCE": "butterfly", "WORKGROUP": 4, "LANES": 4, "ROWS": 8}


def shapes_of(*widths):
    """SHAPES and BUTTERFLY; checked access, which drivers compile for long, in one width."""
    shapes = (*SHAPES, BUTTERFLY)
    return shapes if widths == (32, 32) else [{**shape, "ADDRESS": True} for shape in shapes]


def test_every_block_of_32_rows_has_its_own_input_and_epilogue(device, rng):
    problem = Problem(M=32 * 5, K=64, S=3, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["route"][:, 0] = [128, 0, 64, 0, 32]  # the last one straddles two inputs
    given["route"][:, 2] = [route_code(name) for name in ACTIVATIONS]
    expected = GEMV.oracle(problem, F32, given, {})
    for params in variants(GEMV, F32, device, problem, *SHAPES):
        assert_close(
            GEMV, problem, run(device, GEMV, F32, params, problem, given), expected, params
        )


def test_all_reductions_agree_on_sums_that_are_exact(device, rng):
    problem = Problem(M=96, K=544, S=1, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["weight"] = rng.integers(-8, 9, (96, 544)).astype(np.float32)
    given["in_x"] = rng.integers(-8, 9, (1, 1, 544)).astype(np.float32)
    given["route"][:, 2] = route_code(add=True)
    given["out_y"] = rng.integers(-8, 9, (1, 96)).astype(np.float32)
    exact = given["weight"] @ given["in_x"][0, 0] + given["out_y"][0]
    tried = variants(GEMV, F32, device, problem, *SHAPES)
    assert len({p["REDUCE"] for p in tried}) == 3
    for params in tried:
        found = run(device, GEMV, F32, params, problem, given)["out_y"][0]
        np.testing.assert_array_equal(found, exact, str(params))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_saturate_without_overflow(device, activation):
    problem = Problem(M=32, K=32, S=1, T=1, X=32, Y=32)
    values = np.linspace(-120, 120, 32, dtype=np.float32)
    weight = np.zeros((32, 32), np.float32)
    weight[:, 0] = values
    given = {
        "weight": weight,
        "in_x": np.eye(1, 32, dtype=np.float32),
        "route": np.array([[0, 32, route_code(activation, add=True), 0]], np.uint32),
        "aux": np.zeros(32, np.float32),
        "out_y": np.ones(32, np.float32),
    }
    for params in variants(GEMV, F32, device, problem):
        found = run(device, GEMV, F32, params, problem, given)["out_y"][0]
        sums = values[None].astype(np.float64)
        (expected,) = epilogue(given["route"][0], sums, np.ones((1, 32)), np.zeros(32))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


WIDTHS = [(32, 32), (16, 32), (32, 16), (16, 16)]
COMBINATIONS = [
    (activation, bias, gate, add, halve)
    for activation in ACTIVATIONS
    for bias, gate in ((False, False), (True, False), (False, True))
    for add in (False, True)
    for halve in (False, True)
]


@pytest.mark.parametrize(("x", "y"), WIDTHS)
def test_every_combination_of_an_epilogue_s_parts_holds_side_by_side(device, rng, x, y):
    problem = Problem(M=32 * len(COMBINATIONS), K=32, S=2, T=1, X=x, Y=y)
    given = GEMV.inputs(problem, F32, rng)
    given["route"][:, 2] = [route_code(*parts) for parts in COMBINATIONS]
    expected = GEMV.oracle(problem, F32, given, {})
    for params in variants(GEMV, F32, device, problem, *shapes_of(x, y)):
        found = run(device, GEMV, F32, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


@pytest.mark.parametrize(("x", "y"), WIDTHS)
@pytest.mark.parametrize("precision", [F16, BF16, F32], ids=str)
def test_inputs_and_outputs_of_either_width_are_exact_in_every_load_width(
    device, rng, precision, x, y
):
    problem = Problem(M=64, K=96, S=2, T=1, X=x, Y=y)
    weight = rng.integers(-4, 5, (64, 96)).astype(np.float32)
    given = GEMV.inputs(problem, precision, rng)
    given["weight"] = encode(weight, precision)
    given["in_x"] = rng.integers(-4, 5, (2, 1, 96)).astype(given["in_x"].dtype)
    given["route"][:] = [[96, 96, 0, 0], [0, 96, route_code(add=True), 0]]
    given["out_y"] = rng.integers(-8, 9, (1, 64)).astype(given["out_y"].dtype)
    exact = np.concatenate([weight[:32] @ given["in_x"][1, 0], weight[32:] @ given["in_x"][0, 0]])
    exact[32:] += given["out_y"][0, 32:]
    long = {"VEC": 4, "ADDRESS": True, "WORD": 64}
    changes = ({"VEC": 1}, {"VEC": 2}, {"VEC": 4, "ADDRESS": True}, long, *shapes_of(x, y))
    for params in variants(GEMV, precision, device, problem, *changes):
        found = run(device, GEMV, precision, params, problem, given)["out_y"][0]
        np.testing.assert_array_equal(found.astype(np.float32), exact, str(params))


def test_a_16_bit_output_becomes_infinite_where_the_sum_is_too_large(device):
    problem = Problem(M=32, K=32, S=1, T=1, X=32, Y=16)
    values = np.resize(np.array([1e6, -1e6, 65504, -65504, 7e4, 1.0], np.float32), 32)
    given = {**diagonal(values, F32), "out_y": np.zeros(32, np.float16)}
    expected = GEMV.oracle(problem, F32, given, {})["out_y"][0]
    assert np.isinf(expected[[0, 1, 4]]).all() and np.isfinite(expected[[2, 3, 5]]).all()
    for params in variants(GEMV, F32, device, problem):
        found = run(device, GEMV, F32, params, problem, given)["out_y"][0]
        if device.info.slug == "swiftshader":  # it makes NaN of what is too large for a half
            found = np.where(np.isnan(found) & np.isinf(expected), expected, found)
        np.testing.assert_array_equal(found, expected, str(params))


def test_aux_and_the_old_y_are_read_only_where_the_code_asks(device, rng):
    """A NaN in either would show; the aux offset of plain blocks even lies behind the buffer."""
    problem = Problem(M=64, K=32, S=1, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["aux"][:] = given["out_y"][:] = np.nan
    given["route"][:, 2] = [0, route_code("silu", halve=True)]
    given["route"][:, 3] = 2**20
    for params in variants(GEMV, F32, device, problem, *SHAPES):
        found = run(device, GEMV, F32, params, problem, given)["out_y"][0]
        assert np.isfinite(found).all(), params


def diagonal(values, precision):
    """Weights with these values on the diagonal, times an input of ones."""
    weight = np.zeros((32, 32), np.float32)
    np.fill_diagonal(weight, values)
    return {
        "weight": encode(weight, precision),
        "in_x": np.ones((1, 32), np.float32),
        "route": np.array([[0, 32, 0, 0]], np.uint32),
        "aux": np.zeros(32, np.float32),
        "out_y": np.zeros(32, np.float32),
    }


@pytest.mark.parametrize("unpack", ["half", "shift"])
def test_f16_normal_values_up_to_the_largest_are_exact(device, unpack):
    edges = np.array([65504, 1, 2**-14, 1 + 2**-10, 0.333251953125, 2**-13 - 2**-24, 0.0, 1000])
    values = np.concatenate([edges, -edges, edges * 0.5, -0.0 * edges]).astype(np.float16)
    values[16:][np.abs(values[16:]) < 2**-14] = 0  # halves that would be subnormal
    problem = Problem(M=32, K=32, S=1, T=1, X=32, Y=32)
    given = diagonal(values.astype(np.float32), F16)
    for params in variants(GEMV, F16, device, problem, {"VEC": 1}, {"VEC": 2}):
        found = run(device, GEMV, F16, {**params, "UNPACK": unpack}, problem, given)["out_y"][0]
        np.testing.assert_array_equal(found, values.astype(np.float32), str(params))


@pytest.mark.parametrize("unpack", ["half", "shift"])
def test_f16_subnormals_are_exact(device, unpack):
    if unpack == "shift" and not keeps_subnormals(device):
        pytest.skip(f"{device.info.name} need not keep the float32 subnormals that shifting makes")
    bits = np.array([1, 2, 3, 0x200, 0x3FF, 0x400, 0x8001, 0x83FF] * 4, np.uint16)
    values = bits.view(np.float16).astype(np.float32)
    problem = Problem(M=32, K=32, S=1, T=1, X=32, Y=32)
    for params in variants(GEMV, F16, device, problem):
        given = diagonal(values, F16)
        found = run(device, GEMV, F16, {**params, "UNPACK": unpack}, problem, given)["out_y"][0]
        np.testing.assert_array_equal(found, values, str(params))


def test_bf16_weights_are_exact_over_their_whole_range(device, rng):
    values = decode(rng.integers(0x0100, 0x7E00, 32).astype(np.uint16), BF16)
    values[::2] *= -1
    problem = Problem(M=32, K=32, S=1, T=1, X=32, Y=32)
    for params in variants(GEMV, BF16, device, problem, {"VEC": 1}, {"ADDRESS": True}):
        found = run(device, GEMV, BF16, params, problem, diagonal(values, BF16))["out_y"][0]
        np.testing.assert_array_equal(found, values, str(params))


def test_a_nan_in_one_input_stays_out_of_blocks_that_do_not_read_it(device, rng):
    problem = Problem(M=64, K=64, S=2, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["in_x"][1] = np.nan
    given["route"][:, 0], given["route"][:, 2] = [0, 64], 0
    for params in variants(GEMV, F32, device, problem, *SHAPES[:3]):
        found = run(device, GEMV, F32, params, problem, given)["out_y"][0]
        assert np.isfinite(found[:32]).all()
        assert np.isnan(found[32:]).all()


UNPACKS = ({"UNPACK": "shift"}, {"UNPACK": "shared"}, {"UNPACK": "shuffle"}, {"VEC": 1})
HANDED = {
    "SCALES": "handed",
    "REDUCE": "butterfly",
    "WORKGROUP": 8,
    "LANES": 8,
    "ROWS": 16,
    "VEC": 4,
}


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
def test_every_code_of_a_quantised_format_is_exact_in_every_way_to_unpack_it(device, precision):
    """One weight per row is not zero; its place in the word, and its block, change with the row."""
    codes = 2**precision.bits
    rows, zero = max(codes, 64), 128 if precision == Q8 else 7
    problem = Problem(M=rows, K=64, S=1, T=1, X=32, Y=32)
    code = np.full((rows, 64), zero, np.uint32)
    code[np.arange(rows), np.arange(rows) * 5 % 64] = np.arange(rows) % codes
    per_word = 32 // precision.bits
    shifts = np.arange(per_word, dtype=np.uint32) * precision.bits
    scales = np.array([0.5, 3.0], np.float16).view(np.uint32)
    given = {
        "weight": np.bitwise_or.reduce(code.reshape(rows, -1, per_word) << shifts, -1),
        "scale": np.full((rows, 1), scales, np.uint32),
        "in_x": np.ones((1, 1, 64), np.float32),
        "route": np.zeros((rows // 32, 4), np.uint32),
        "aux": np.zeros(rows, np.float32),
        "out_y": np.zeros((1, rows), np.float32),
    }
    exact = decoded(given, precision).sum(-1, dtype=np.float64).astype(np.float32)
    assert len(np.unique(code)) == codes
    for params in variants(GEMV, precision, device, problem, *UNPACKS):
        found = run(device, GEMV, precision, params, problem, given)["out_y"][0]
        np.testing.assert_array_equal(found, exact, str(params))


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
def test_a_row_of_an_odd_number_of_blocks_leaves_half_a_word_of_scales_unused(
    device, rng, precision
):
    problem = Problem(M=64, K=96, S=1, T=2, X=32, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    assert given["scale"].shape == (64, 2)
    given["scale"][:, 1] |= 0x7E00_0000  # a NaN behind the third scale
    expected = GEMV.oracle(problem, precision, given, {})
    assert np.isfinite(expected["out_y"]).all()
    for params in variants(GEMV, precision, device, problem, {"UNPACK": "shuffle"}):
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


COLUMNS = ({"COLS": 2}, {"COLS": 4}, {"COLS": 8}, {"COLS": 2, "ROWS": 8, **SHAPES[1]})


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 8])
def test_tokens_go_their_own_ways_in_every_number_of_columns(device, rng, tokens):
    problem = Problem(M=96, K=96, S=2, T=tokens, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["weight"] = rng.integers(-8, 9, (96, 96)).astype(np.float32)
    given["in_x"] = rng.integers(-8, 9, (2, tokens, 96)).astype(np.float32)
    given["out_y"] = rng.integers(-8, 9, (tokens, 96)).astype(np.float32)
    given["aux"] = rng.integers(-8, 9, 96).astype(np.float32)
    add = route_code(add=True, gate=True, stride=9)
    given["route"][:] = [[0, 96, add, 1], [96 * tokens, 96, 0, 0], [0, 96, add, 0]]
    exact = GEMV.oracle(problem, F32, given, {})["out_y"]
    tried = variants(GEMV, F32, device, problem, *COLUMNS)
    assert tokens == 1 or len({p["COLS"] for p in tried}) > 1
    for params in tried:
        found = run(device, GEMV, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


STAGED = {"INPUT": "staged", "REDUCE": "shared", "WORKGROUP": 16, "LANES": 4, "ROWS": 4}
SPARSE = {"INPUT": "sparse", "REDUCE": "shared", "WORKGROUP": 8, "LANES": 4, "ROWS": 4, "VEC": 1}


@pytest.mark.parametrize("precision", [F16, Q8], ids=str)
@pytest.mark.parametrize("x", [32, 16])
def test_zeros_of_an_input_change_nothing_in_any_way_to_read_it(device, rng, precision, x):
    problem = Problem(M=64, K=1184, S=1, T=1, X=x, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    given["in_x"] *= rng.random(given["in_x"].shape) < 0.15
    given["in_x"][..., 320:480] = 0
    expected = GEMV.oracle(problem, precision, given, {})
    tried = variants(GEMV, precision, device, problem, STAGED, SPARSE)
    assert {p["INPUT"] for p in tried} == {"direct", "staged", "sparse"}
    for params in tried:
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


def test_sparse_inputs_leave_the_weights_of_zeros_unread(device, rng):
    """The weights that must not be loaded are NaN, which any product would show."""
    problem = Problem(M=32, K=256, S=1, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["in_x"][..., 64:192] = 0
    given["weight"][:, 64:192] = np.nan
    given["route"][:, 2] = 0
    params = {**variants(GEMV, F32, device, problem)[0], **SPARSE}
    found = run(device, GEMV, F32, params, problem, given)["out_y"]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
@pytest.mark.parametrize("k", [64, 160, 448, 832])
def test_scales_that_lanes_hand_round_are_those_of_their_blocks(device, rng, precision, k):
    """Blocks of very unlike sizes, in rows whose last step is not for all lanes."""
    problem = Problem(M=64, K=k, S=1, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    sizes = np.repeat(2.0 ** rng.integers(-9, 9, (64, k // 32)), 32, axis=1)
    given |= encoded((rng.standard_normal((64, k)) * sizes).astype(np.float32), precision)
    given["route"][:] = 0
    expected = GEMV.oracle(problem, precision, given, {})
    tried = variants(GEMV, precision, device, problem, HANDED, {**HANDED, "ADDRESS": True})
    for params in tried:
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)
    if device.info.subgroup_min == 8:
        assert any(params["SCALES"] == "handed" for params in tried)


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
def test_quantised_weights_of_any_number_of_blocks_come_back(rng, precision):
    for blocks in (1, 2, 5):
        weight = rng.standard_normal((32, 32 * blocks)).astype(np.float32)
        once = decoded(encoded(weight, precision), precision)
        assert once.shape == weight.shape
        assert np.abs(once - weight).max() < 0.6
        np.testing.assert_array_equal(decoded(encoded(once, precision), precision), once)
