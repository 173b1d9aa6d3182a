"""embedding: exact rows, the last one too, pages, rows that are added, tokens of no page."""

import numpy as np
import pytest

from kernelforge.families.embedding import EMBEDDING, NO_MATCH
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, F32, decode
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"ADDRESS": True})
PRECISIONS = pytest.mark.parametrize("precision", [F32, F16, BF16], ids=str)
WIDTHS = pytest.mark.parametrize("bits", [32, 16])


@PRECISIONS
def test_rows_are_exact_and_the_last_one_is_reached(device, rng, precision):
    problem = Problem(T=4, C=96, V=37, X=32)
    given = EMBEDDING.inputs(problem, precision, rng)
    given["token"][:] = [36, 0, 36, 17]
    expected = decode(given["table"], precision)[given["token"]]
    for params in variants(EMBEDDING, precision, device, problem, *SHAPES):
        found = run(device, EMBEDDING, precision, params, problem, given)["out_x"]
        np.testing.assert_array_equal(found, expected)


@PRECISIONS
@WIDTHS
@pytest.mark.parametrize("add", [0, 1])
def test_pages_together_give_the_whole_table_and_leave_each_other_alone(
    device, rng, precision, bits, add
):
    whole = Problem(T=7, C=64, V=50, X=bits)
    given = EMBEDDING.inputs(whole, precision, rng)
    given["token"][:] = [0, 19, 20, NO_MATCH, 39, 40, 49]
    together = EMBEDDING.oracle(whole, precision, given, {"first": 0, "add": add})
    params = variants(EMBEDDING, precision, device, whole)[0]
    for first, rows in ((0, 20), (20, 20), (40, 10)):
        page = Problem(T=7, C=64, V=rows, X=bits)
        part = {**given, "table": given["table"][first : first + rows]}
        constants = {"first": first, "add": add}
        found = run(device, EMBEDDING, precision, params, page, part, constants)
        mine = (given["token"] >= first) & (given["token"] < first + rows)
        if first == 0 and not add:
            mine |= given["token"] == NO_MATCH
        np.testing.assert_array_equal(found["out_x"][~mine], given["out_x"][~mine])
        given = {**given, **found}
    assert_close(EMBEDDING, whole, given, together)


@WIDTHS
def test_no_match_is_zeros_or_adds_nothing_and_a_token_beyond_the_table_leaves_its_row(
    device, rng, bits
):
    problem = Problem(T=3, C=32, V=5, X=bits)
    given = EMBEDDING.inputs(problem, F32, rng)
    given["token"][:] = [5, NO_MATCH, 4]
    for params in variants(EMBEDDING, F32, device, problem, *SHAPES):
        constants = {"first": 0, "add": 0}
        found = run(device, EMBEDDING, F32, params, problem, given, constants)["out_x"]
        np.testing.assert_array_equal(found[0], given["out_x"][0])
        np.testing.assert_array_equal(found[1], np.zeros(32))
        found = run(device, EMBEDDING, F32, params, problem, given, {**constants, "add": 1})
        np.testing.assert_array_equal(found["out_x"][:2], given["out_x"][:2])
        assert_close(
            EMBEDDING,
            problem,
            found,
            EMBEDDING.oracle(problem, F32, given, {"first": 0, "add": 1}),
        )


@WIDTHS
def test_f16_subnormals_and_extremes_come_out_exactly(device, rng, bits):
    words = np.array(
        [0x0001, 0x03FF, 0x0400, 0x7BFF, 0x8001, 0xFBFF, 0x8000, 0x3C00] * 4, np.uint16
    )
    problem = Problem(T=1, C=32, V=1, X=bits)
    given = EMBEDDING.inputs(problem, F16, rng)
    given["table"] = words.view(np.float16)[None]
    for params in variants(EMBEDDING, F16, device, problem):
        found = run(device, EMBEDDING, F16, params, problem, given)["out_x"]
        np.testing.assert_array_equal(found[0], words.view(np.float16).astype(found.dtype))
