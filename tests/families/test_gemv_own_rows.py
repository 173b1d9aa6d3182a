"""gemv with rows of their own for every invocation: x handed round, and neighbours that store."""

import numpy as np
import pytest

from kernelforge.families.gemv import GEMV, encoded
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import route_code
from kernelforge_runtime.dtypes import F32, NF4, Q8
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


def own_rows(device, precision, problem, *changes):
    """What there is of LANES = 1 for this device, in every layout that its rows can have."""
    form = {
        "WORKGROUP": device.info.subgroup_min,
        "LANES": 1,
        "ROWS": 2,
        "VEC": 4,
        "UNROLL": 1,
        "REDUCE": "butterfly",
        "INPUT": "direct",
        "SCALES": "own",
        "ADDRESS": True,
    }
    forms = [{**form, **change} for change in changes]
    found = variants(GEMV, precision, device, problem, *forms)
    return [params for params in found if params["LANES"] == 1]


@pytest.mark.parametrize("precision", GEMV.precisions, ids=str)
def test_each_row_meets_the_whole_of_its_own_input(device, rng, precision):
    k = 96  # an odd number of blocks
    problem = Problem(M=96, K=k, S=3, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    given["route"][:, 0] = [2 * k, 0, k]
    expected = GEMV.oracle(problem, precision, given, {})
    forms = [{"LAYOUT": "by8"}, {"LAYOUT": "by4", "WORD": 64, "ROWS": 4}]
    lanes = device.info.subgroup_min
    forms += [{"ADDRESS": 2, "LAYOUT": f"by{lanes}", "WORD": word} for word in (32, 64)]
    tried = own_rows(device, precision, problem, {}, *forms)
    assert len(tried) >= 2
    if "uniform_windows" in device.info.features:
        assert 2 in [params["ADDRESS"] for params in tried]
    for params in tried:
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


@pytest.mark.parametrize("k", [32, 1056])
@pytest.mark.parametrize("tokens", [1, 3])
def test_windows_show_every_row_of_a_matrix_that_is_longer_than_they_are(device, rng, tokens, k):
    m = 2560 if k == 32 else 224  # several windows, which begin in the middle of a row's block
    problem = Problem(M=m, K=k, S=1, T=tokens, X=32, Y=32)
    given = GEMV.inputs(problem, F32, rng)
    given["route"][:] = [0, k, 0, 0]
    expected = GEMV.oracle(problem, F32, given, {})
    layout = {"ADDRESS": 2, "LAYOUT": f"by{device.info.subgroup_min}"}
    columns = (1,) if tokens == 1 else (2, 4)
    forms = [{**layout, "ROWS": rows, "COLS": c} for rows in (1, 4) for c in columns]
    if "uniform_windows" not in device.info.features:
        pytest.skip(f"{device.info.name} has no uniform_windows")
    tried = [p for p in own_rows(device, F32, problem, *forms) if p["ADDRESS"] == 2]
    assert len(tried) == len(forms)
    for params in tried:
        found = run(device, GEMV, F32, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


@pytest.mark.parametrize(("x", "y"), [(32, 32), (16, 32), (32, 16), (16, 16)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_neighbours_store_pairs_and_columns_store_their_tokens(device, rng, tokens, x, y):
    problem = Problem(M=64, K=64, S=2, T=tokens, X=x, Y=y)
    given = GEMV.inputs(problem, F32, rng)
    given["weight"] = rng.integers(-8, 9, (64, 64)).astype(np.float32)
    given["in_x"] = rng.integers(-8, 9, given["in_x"].shape).astype(given["in_x"].dtype)
    given["route"] = np.array([[64 * tokens, 64, 0, 0], [0, 64, 0, 0]], np.uint32)
    sums = given["in_x"][::-1].astype(np.float32) @ given["weight"].reshape(2, 32, 64).mT
    exact = np.concatenate(list(sums), axis=-1).astype(given["out_y"].dtype)
    tried = own_rows(device, F32, problem, *({"COLS": columns} for columns in (1, 4, 8)))
    assert {params["COLS"] for params in tried} == ({1} if tokens == 1 else {4, 8})
    for params in tried:
        found = run(device, GEMV, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))


@pytest.mark.parametrize("y", [32, 16])
def test_every_row_gets_the_epilogue_and_the_bias_of_its_block(device, rng, y):
    problem = Problem(M=64, K=32, S=1, T=1, X=32, Y=y)
    given = GEMV.inputs(problem, F32, rng)
    codes = route_code("relu2", bias=True), route_code("tanh", gate=True, add=True)
    given["route"] = np.array([[0, 32, codes[0], 0], [0, 32, codes[1], 32]], np.uint32)
    expected = GEMV.oracle(problem, F32, given, {})
    for params in own_rows(device, F32, problem, {}, {"LAYOUT": "by8"}):
        found = run(device, GEMV, F32, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)


@pytest.mark.parametrize("precision", [Q8, NF4], ids=str)
def test_scales_are_those_of_their_blocks_and_half_a_word_is_left_alone(device, rng, precision):
    problem = Problem(M=64, K=96, S=1, T=1, X=32, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    sizes = np.repeat(2.0 ** rng.integers(-9, 9, (64, 3)), 32, axis=1)
    given |= encoded((rng.standard_normal((64, 96)) * sizes).astype(np.float32), precision)
    given["scale"][:, 1] |= 0x7E00_0000  # a NaN behind the third scale
    expected = GEMV.oracle(problem, precision, given, {})
    assert np.isfinite(expected["out_y"]).all()
    unpacks = ("half", "shift") if precision == Q8 else ("half", "shuffle", "shared")
    for params in own_rows(device, precision, problem, *({"UNPACK": name} for name in unpacks)):
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)
