"""gemm: token counts that fit no tile, both forms, wide tiles, routes with strides of their own."""

import numpy as np
import pytest

from kernelforge.families.gemm import GEMM
from kernelforge.families.gemv import GEMV
from kernelforge.traits.matrices import stored_weight, weight_values
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ACTIVATIONS, ROUTE_ROWS, route_code
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8
from tests.families.running import UNWRITTEN, assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SMALL_TILE = {"FORM": "tile", "BM": 16, "BT": 8, "BK": 32, "TM": 2, "TT": 4, "WORKGROUP": 16}
TALL_TILE = {"FORM": "tile", "BM": 32, "BT": 64, "BK": 32, "TM": 4, "TT": 8, "WORKGROUP": 64}
BROADCAST = {"FORM": "broadcast", "WORKGROUP": 8, "BM": 32, "BT": 32, "BK": 32, "TM": 2, "TT": 4}
BY_TOKENS = {**BROADCAST, "TM": 4, "TT": 8, "SPREAD": "tokens"}
BY_ADDRESS = {"ADDRESS": True}
LONG_WORDS = {**BY_ADDRESS, "WORD": 64}
CHECKED = (SMALL_TILE, BROADCAST, BY_TOKENS)
# Software devices compile checked access for several times as long: beside the default's it is
# tried in one format and width only, and in all of them by conformance.
FORMS = (
    {**SMALL_TILE, **BY_ADDRESS},
    {**TALL_TILE, **BY_ADDRESS},
    {**BROADCAST, **BY_ADDRESS},
    {**BROADCAST, **LONG_WORDS, "TM": 4, "TT": 12},
    {**BY_TOKENS, **BY_ADDRESS},
    {**BY_TOKENS, **LONG_WORDS},
)
EVERY_FORM = (*CHECKED, *FORMS)


@pytest.mark.parametrize("tokens", [1, 7, 33, 65])
def test_token_counts_that_fit_no_tile_are_right(device, rng, tokens):
    problem = Problem(M=64, K=96, S=2, T=tokens, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    expected = GEMM.oracle(problem, F32, given, {})
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


@pytest.mark.parametrize("precision", [F16, BF16, F32, Q8], ids=str)
def test_both_forms_agree_on_sums_that_are_exact(device, rng, precision):
    problem = Problem(M=64, K=64, S=1, T=19, X=32, Y=32)
    whole = rng.integers(-8, 9, (64, 64)).astype(np.float32)
    given = GEMM.inputs(problem, precision, rng)
    whole[:, ::32] = 127  # a block of q8 that is exact
    given |= stored_weight(whole, precision)
    given["in_x"] = rng.integers(-8, 9, (1, 19, 64)).astype(np.float32)
    given["route"][:, 2] = 0
    exact = given["in_x"][0] @ whole.T
    tried = variants(GEMM, precision, device, problem, *FORMS, {**FORMS[0], "UNPACK": "shift"})
    for params in tried:
        found = run(device, GEMM, precision, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))
    if device.info.slug == "llvmpipe":
        assert {p["FORM"] for p in tried} == {"tile", "broadcast"}


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
@pytest.mark.parametrize("k", [64, 96])
def test_quantised_weights_come_out_one_by_one_as_the_format_says(device, rng, precision, k):
    """The columns of the identity, one per token, pick every weight out by itself."""
    problem = Problem(M=64, K=k, S=1, T=k, X=32, Y=32)
    given = GEMM.inputs(problem, precision, rng)
    sizes = np.repeat(2.0 ** rng.integers(-9, 9, (64, k // 32)), 32, axis=1)
    weight = (rng.standard_normal((64, k)) * sizes).astype(np.float32)
    weight[5, :32] = 0
    given |= stored_weight(weight, precision)
    given["in_x"] = np.eye(k, dtype=np.float32)[None]
    given["route"][:] = [0, k, 0, 0]
    exact = weight_values(given, precision).T
    assert np.abs(exact - weight.T).max() < (3e-2 if precision == Q8 else 0.2) * sizes.max() * 4
    for params in variants(GEMM, precision, device, problem, *FORMS):
        found = run(device, GEMM, precision, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


# The space keeps these from software devices, which compile them for long and gain nothing.
WIDE = {"FORM": "tile", "BM": 128, "BT": 32, "BK": 16, "TM": 8, "TT": 4, "WORKGROUP": 128}
WIDE_TILES = [
    (F32, 32, 32, {**WIDE}),
    (BF16, 16, 16, {**WIDE, "PREFETCH": True, "VEC": 2, "PAD": 1, "ADDRESS": True}),
    (Q8, 32, 16, {**WIDE, "STRIP": 8, "GROUP": 8, "ADDRESS": True}),
    (NF4, 16, 32, {**WIDE, "BM": 64, "WORKGROUP": 64, "BK": 32, "PREFETCH": True, "ADDRESS": True}),
    (F16, 32, 32, {**WIDE, "BM": 64, "BT": 64, "TT": 8, "WORKGROUP": 64, "ADDRESS": True}),
]


@pytest.mark.parametrize(("precision", "x", "y", "change"), WIDE_TILES, ids=str)
def test_a_wide_tile_serves_rows_of_several_inputs(device, rng, precision, x, y, change):
    """Ten blocks of rows in tiles of up to four, some with their neighbour's input."""
    problem = Problem(M=320, K=96, S=3, T=37, X=x, Y=y)
    params = {**GEMM.space.declared_default, **change, "X": x, "Y": y}
    if reason := GEMM.fits(precision, params, device.info):
        pytest.skip(f"{device.info.name}: {reason}")
    given = GEMM.inputs(problem, precision, rng)
    given["route"][:, 0] = np.array([0, 0, 1, 0, 2, 2, 2, 2, 1, 0]) * 37 * 96
    expected = GEMM.oracle(problem, precision, given, {})
    found = run(device, GEMM, precision, params, problem, given)
    assert_close(GEMM, problem, found, expected, params)


def test_workgroups_in_groups_visit_every_tile(device, rng):
    """Nine row tiles, the last one half empty, and three of tokens: a whole group and a rest."""
    problem = Problem(M=64 * 8 + 32, K=32, S=1, T=70, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    expected = GEMM.oracle(problem, F32, given, {})
    change = {**WIDE, "BM": 64, "WORKGROUP": 64, "GROUP": 8, "ADDRESS": True}
    params = {**GEMM.space.declared_default, **change}
    found = run(device, GEMM, F32, params, problem, given)
    assert_close(GEMM, problem, found, expected)


def test_rows_are_read_with_the_stride_of_their_route(device, rng):
    """Columns 32 to 95 of an input that is 160 wide: how a LoRA reads its part of a projection."""
    problem = Problem(M=32, K=64, S=1, T=9, X=32, Y=32)
    wide = rng.standard_normal((9, 160)).astype(np.float32)
    given = GEMM.inputs(problem, F32, rng)
    given["in_x"] = wide
    given["route"][:] = [[32, 160, 0, 0]]
    expected = {"out_y": wide[:, 32:96].astype(np.float64) @ given["weight"].T}
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


def test_each_block_has_its_own_epilogue_and_the_residual_is_added_once(device, rng):
    problem = Problem(M=160, K=32, S=1, T=5, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    given["route"][:, 2] = [route_code(name, add=True) for name in ACTIVATIONS]
    expected = GEMM.oracle(problem, F32, given, {})
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


WIDTHS = [(32, 32), (16, 32), (32, 16), (16, 16)]
COMBINATIONS = [
    (activation, bias, gate, add, halve)
    for activation in ACTIVATIONS
    for bias, gate in ((False, False), (True, False), (False, True))
    for add in (False, True)
    for halve in (False, True)
]


@pytest.mark.parametrize(("x", "y"), WIDTHS)
def test_every_combination_of_an_epilogue_s_parts_reads_aux_with_its_own_stride(device, rng, x, y):
    tokens = 5
    problem = Problem(M=ROUTE_ROWS * len(COMBINATIONS), K=32, S=2, T=tokens, X=x, Y=y)
    given = GEMM.inputs(problem, F32, rng)
    strides = rng.choice([0, 32, 33, 1000], len(COMBINATIONS))
    given["aux"] = rng.standard_normal(tokens * 1000 + 2000).astype(np.float32)
    given["route"][:, 2] = [
        route_code(*parts, stride=int(stride))
        for parts, stride in zip(COMBINATIONS, strides, strict=True)
    ]
    given["route"][:, 3] = rng.integers(0, 1000, len(COMBINATIONS))
    expected = GEMM.oracle(problem, F32, given, {})
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)
        assert_close(GEMM, problem, found, expected, params)


def test_the_last_token_of_an_aux_takes_its_own_row(device):
    problem = Problem(M=32, K=32, S=1, T=3, X=32, Y=32)
    given = {
        "weight": np.eye(32, dtype=np.float32),
        "in_x": np.arange(96, dtype=np.float32).reshape(1, 3, 32),
        "route": np.array([[0, 32, route_code(bias=True, halve=True, stride=64), 7]], np.uint32),
        "aux": np.arange(200, dtype=np.float32) * 1000,
        "out_y": np.full((3, 32), np.nan, np.float32),
    }
    row = np.arange(32) + 7
    exact = (given["in_x"][0] + np.stack([row, row + 64, row + 128]) * 1000) / 2
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


@pytest.mark.parametrize(("x", "y"), WIDTHS)
@pytest.mark.parametrize("precision", [F16, BF16, F32, Q8], ids=str)
def test_inputs_and_outputs_of_either_width_are_exact(device, rng, precision, x, y):
    problem = Problem(M=64, K=64, S=2, T=11, X=x, Y=y)
    weight = rng.integers(-4, 5, (64, 64)).astype(np.float32)
    given = GEMM.inputs(problem, precision, rng)
    weight[:, ::32] = 127
    given |= stored_weight(weight, precision)
    given["in_x"] = rng.integers(-4, 5, (2, 11, 64)).astype(given["in_x"].dtype)
    given["route"][:] = [[11 * 64, 64, 0, 0], [0, 64, route_code(add=True), 0]]
    given["out_y"] = rng.integers(-8, 9, (11, 64)).astype(given["out_y"].dtype)
    inputs = given["in_x"].astype(np.float32)
    exact = np.concatenate([inputs[1] @ weight[:32].T, inputs[0] @ weight[32:].T], axis=1)
    exact[:, 32:] += given["out_y"][:, 32:]
    for params in variants(GEMM, precision, device, problem, *FORMS):
        found = run(device, GEMM, precision, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found.astype(np.float32), exact, str(params))


def test_a_16_bit_output_becomes_infinite_where_the_sum_is_too_large(device):
    problem = Problem(M=32, K=32, S=1, T=2, X=32, Y=16)
    large = np.resize(np.array([1e6, -1e6, 65504, 1.0], np.float32), 32)
    given = {
        "weight": np.eye(32, dtype=np.float32),
        "in_x": np.stack([large, -large])[None],
        "route": np.array([[0, 32, 0, 0]], np.uint32),
        "aux": np.zeros(32, np.float32),
        "out_y": np.zeros((2, 32), np.float16),
    }
    expected = GEMM.oracle(problem, F32, given, {})["out_y"]
    assert np.isinf(expected[:, :2]).all() and np.isfinite(expected[:, 2:4]).all()
    for params in variants(GEMM, F32, device, problem, *FORMS):
        found = run(device, GEMM, F32, params, problem, given)["out_y"]
        if device.info.slug == "swiftshader":  # it makes NaN of what is too large for a half
            found = np.where(np.isnan(found) & np.isinf(expected), expected, found)
        np.testing.assert_array_equal(found, expected, str(params))


def test_aux_and_the_old_y_are_read_only_where_the_code_asks(device, rng):
    """A NaN in either would show; the aux offset of plain blocks even lies behind the buffer."""
    problem = Problem(M=64, K=32, S=1, T=5, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    given["aux"][:] = given["out_y"][:] = np.nan
    given["route"][:, 2] = [0, route_code("silu", halve=True)]
    given["route"][:, 3] = 2**20
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)["out_y"]
        assert np.isfinite(found).all(), params


def test_one_token_is_what_gemv_gives(device, rng):
    problem = Problem(M=64, K=64, S=2, T=1, X=32, Y=32)
    given = GEMM.inputs(problem, F16, rng)
    params = variants(GEMV, F16, device, problem)[0]
    expected = run(device, GEMV, F16, params, problem, given)["out_y"]
    for params in variants(GEMM, F16, device, problem, *FORMS):
        found = run(device, GEMM, F16, params, problem, given)["out_y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_written_behind_the_last_token(device, rng):
    problem = Problem(M=32, K=32, S=1, T=3, X=32, Y=32)
    given = GEMM.inputs(problem, F32, rng)
    given["out_y"] = np.full((64, 32), UNWRITTEN, np.uint32).view(np.float32)
    given["route"][:, 2] = 0
    given["in_x"] = np.concatenate([given["in_x"][0], np.full((61, 32), np.nan, np.float32)])
    for params in variants(GEMM, F32, device, problem, *EVERY_FORM):
        found = run(device, GEMM, F32, params, problem, given)["out_y"]
        assert np.isfinite(found).all(), params
