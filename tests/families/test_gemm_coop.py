"""gemm_coop: shapes that a device lists, exact sums, several inputs in one tile."""

from dataclasses import replace

import numpy as np
import pytest

from kernelforge.compile import missing_extensions
from kernelforge.families.gemm_coop import GEMM_COOP
from kernelforge.traits.matrices import stored_weight
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, NF4, Q8
from tests.families.running import UNWRITTEN, assert_close, run, variants

HALVES = ("f16", "f16", "f32", "f32")
WITH_MATRICES = replace(
    GENERIC,
    features=GENERIC.features | {"cooperative_matrix", "float16", "subgroup_size_control"},
    subgroup_size=32,
    subgroup_min=32,
    subgroup_max=32,
    max_workgroup_invocations=512,
    max_workgroup_size=(512, 1, 1),
    max_shared_memory=49152,
)


def test_a_device_that_lists_no_matrices_has_no_variant():
    assert GEMM_COOP.valid(F16, WITH_MATRICES) == []


def test_a_device_gets_the_shapes_of_half_products_that_it_lists_and_no_others():
    shapes = (
        (16, 16, 16, *HALVES),
        (16, 8, 8, *HALVES),
        (8, 8, 16, "f16", "f16", "f16", "f16"),
        (16, 8, 16, "i8", "i8", "i32", "i32"),
    )
    device = replace(WITH_MATRICES, cooperative_shapes=shapes)
    found = GEMM_COOP.valid(F16, device)
    assert {p["SHAPE"] for p in found} == {"16x16x16", "16x8x8"}
    assert {p["SUBGROUP"] for p in found} == {32}


def test_sums_in_halves_need_a_device_that_lists_them():
    shapes = ((16, 16, 16, *HALVES), (16, 8, 16, *HALVES), (16, 8, 16, *["f16"] * 4))
    found = GEMM_COOP.valid(F16, replace(WITH_MATRICES, cooperative_shapes=shapes))
    assert {p["SHAPE"] for p in found if p["ACC"] == "f32"} == {"16x16x16", "16x8x16"}
    assert {p["SHAPE"] for p in found if p["ACC"] == "f16"} == {"16x8x16"}


def test_the_feature_must_be_there_besides_the_shape():
    device = replace(
        WITH_MATRICES,
        cooperative_shapes=((16, 16, 16, *HALVES),),
        features=WITH_MATRICES.features - {"cooperative_matrix"},
    )
    assert GEMM_COOP.valid(F16, device) == []


SMALL = {"BM": 32, "BT": 16, "WM": 16, "WT": 16, "BK": 16, "PREFETCH": False}
FORMS = (
    SMALL,
    {"BM": 64, "BT": 32, "WM": 16, "WT": 16, "GROUP": 8},
    {**SMALL, "ADDRESS": True},
    {**SMALL, "BK": 64, "WM": 8, "PAD": 0},
    {**SMALL, "BK": 32, "SPLIT_K": 2},
    {**SMALL, "BK": 32, "SPLIT_K": 4, "WM": 8},
    {**SMALL, "PREFETCH": True, "STAGES": 2},
    {**SMALL, "BK": 64, "WM": 8, "PREFETCH": True, "STAGES": 2, "SPLIT_K": 2},
)
IN_HALVES = tuple({**form, "ACC": "f16"} for form in (SMALL, FORMS[-1]))
"""These want a K of 256."""


def possible(device, precision, problem, forms=FORMS):
    """Variants to try; skips where the device or the compiler can do none."""
    if not device.info.cooperative_shapes:
        pytest.skip(f"{device.info.name} has no cooperative matrices")
    small = [{**form, "X": problem["X"], "Y": problem["Y"]} for form in forms]
    default = variants(GEMM_COOP, precision, device, problem, *small)
    if device.info.device_type == "cpu":
        assert len(default) >= len(forms), "a form is not possible: nothing would test it"
    if missing := missing_extensions(GEMM_COOP):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    return default


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(("x", "y"), [(32, 32), (16, 16), (16, 32)])
@pytest.mark.parametrize("precision", [F16, BF16, Q8], ids=str)
def test_sums_of_whole_numbers_are_exact(device, rng, precision, x, y):
    problem = Problem(M=64, K=64, S=1, T=19, X=x, Y=y)
    whole = rng.integers(-8, 9, (64, 64)).astype(np.float32)
    whole[:, ::32] = 127  # a block of q8 that is exact
    given = GEMM_COOP.inputs(problem, precision, rng)
    given |= stored_weight(whole, precision)
    given["in_x"] = rng.integers(-4, 5, (1, 19, 64)).astype(given["in_x"].dtype)
    given["route"][:, 2] = 0
    exact = given["in_x"][0].astype(np.float32) @ whole.T
    forms = FORMS if (precision, x, y) == (F16, 16, 16) else FORMS[:2]
    for params in possible(device, precision, problem, forms):
        found = run(device, GEMM_COOP, precision, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found.astype(np.float32), exact, str(params))


@pytest.mark.vulkan
@pytest.mark.glslang
def test_sums_in_halves_of_whole_numbers_are_exact(device, rng):
    problem = Problem(M=64, K=256, S=1, T=19, X=16, Y=32)
    whole = rng.integers(-8, 9, (64, 256)).astype(np.float32)
    given = GEMM_COOP.inputs(problem, F16, rng) | stored_weight(whole, F16)
    given["in_x"] = rng.integers(-4, 5, (1, 19, 256)).astype(np.float16)
    given["route"][:, 2] = 0
    exact = given["in_x"][0].astype(np.float32) @ whole.T
    for params in possible(device, F16, problem, IN_HALVES):
        found = run(device, GEMM_COOP, F16, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


def test_sums_in_halves_are_for_a_long_k():
    """Random ones of a short K are beyond the tolerance now and then."""
    shapes = ((16, 16, 16, *HALVES), (16, 16, 16, *["f16"] * 4))
    device = replace(WITH_MATRICES, cooperative_shapes=shapes)

    def longest(columns: int) -> int:
        problem = Problem(M=64, K=columns, S=1, T=16, X=32, Y=32)
        found = GEMM_COOP.valid(BF16, device, problem)
        return max((p["BK"] // p["SPLIT_K"] for p in found if p["ACC"] == "f16"), default=0)

    assert [longest(columns) for columns in (96, 128, 256, 512)] == [0, 16, 32, 64]


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(("columns", "forms"), [(96, FORMS), (288, IN_HALVES)])
@pytest.mark.parametrize("precision", [F16, NF4], ids=str)
def test_a_tile_serves_rows_of_several_inputs(device, rng, precision, columns, forms):
    problem = Problem(M=160, K=columns, S=3, T=37, X=16, Y=32)
    given = GEMM_COOP.inputs(problem, precision, rng)
    given["route"][:, 0] = np.array([0, 1, 2, 2, 0]) * 37 * columns
    expected = GEMM_COOP.oracle(problem, precision, given, {})
    for params in possible(device, precision, problem, forms):
        found = run(device, GEMM_COOP, precision, params, problem, given)
        assert_close(GEMM_COOP, problem, found, expected, params)


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(("columns", "forms"), [(32, FORMS), (288, IN_HALVES)])
def test_what_lies_beyond_the_last_column_counts_nothing(device, rng, columns, forms):
    """The next row of weights, and of x an infinity that times zero would be NaN."""
    problem = Problem(M=32, K=columns, S=1, T=3, X=16, Y=32)
    given = GEMM_COOP.inputs(problem, F16, rng)
    given["route"][:, 2] = 0
    given["route"][:, 1] = columns + 32
    wide = np.full((1, 4, columns + 32), np.inf, np.float16)
    wide[0, :3, :columns] = given["in_x"][0]
    given["in_x"] = wide
    expected = GEMM_COOP.oracle(problem, F16, given, {})
    for params in possible(device, F16, problem, forms):
        found = run(device, GEMM_COOP, F16, params, problem, given)
        assert_close(GEMM_COOP, problem, found, expected, params)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_nothing_is_written_behind_the_last_token(device, rng):
    problem = Problem(M=32, K=32, S=1, T=3, X=32, Y=32)
    given = GEMM_COOP.inputs(problem, F16, rng)
    given["out_y"] = np.full((64, 32), UNWRITTEN, np.uint32).view(np.float32)
    given["route"][:, 2] = 0
    for params in possible(device, F16, problem):
        found = run(device, GEMM_COOP, F16, params, problem, given)["out_y"]
        assert np.isfinite(found).all(), params


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(
    ("precision", "change", "m", "k", "t", "x", "y"),
    [
        (F16, {"SPLIT_GRID": 2}, 160, 288, 37, 16, 16),
        (F16, {"SPLIT_GRID": 8}, 96, 1056, 19, 32, 32),
        (NF4, {"SPLIT_GRID": 4, "BK": 64, "WM": 8}, 32, 544, 5, 16, 32),
        (F16, {"SPLIT_GRID": 4, "BK": 32, "WM": 8, "PREFETCH": True}, 96, 544, 37, 32, 16),
        (Q8, {"SPLIT_GRID": 2, "PREFETCH": True, "STAGES": 2}, 64, 288, 33, 16, 32),
        (F16, {"EDGES": "aligned"}, 96, 96, 48, 16, 16),
        (F16, {"EDGES": "aligned", "BK": 64, "WM": 8}, 64, 128, 32, 32, 32),
        (BF16, {"EDGES": "aligned", "BM": 64, "BT": 32, "BK": 32}, 192, 96, 64, 16, 32),
    ],
    ids=str,
)
def test_parts_of_k_and_whole_tiles_are_right_with_every_epilogue(
    device, rng, precision, change, m, k, t, x, y
):
    problem = Problem(M=m, K=k, S=3, T=t, X=x, Y=y)
    (params,) = possible(device, precision, problem, [{**SMALL, **change}])[-1:]
    assert change.items() <= params.items()
    given = GEMM_COOP.inputs(problem, precision, rng)
    expected = GEMM_COOP.oracle(problem, precision, given, {})
    found = run(device, GEMM_COOP, precision, params, problem, given)
    assert_close(GEMM_COOP, problem, found, expected, params)


def test_a_kernel_of_whole_tiles_serves_no_others():
    params = {**GEMM_COOP.space.declared_default, "EDGES": "aligned", "BM": 64, "BT": 32, "BK": 64}
    serves = GEMM_COOP.signature(F16, params).serves
    whole = Problem(M=128, K=192, S=1, T=64, X=32, Y=32)
    assert serves(whole)
    for dim, size in (("M", 96), ("T", 33), ("K", 160)):
        assert not serves(Problem(**{**whole, dim: size}))
