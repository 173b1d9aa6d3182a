"""embedding: exact rows, the last one too, and tables that are bound in pages."""

import numpy as np
import pytest

from kernelforge.families.embedding import EMBEDDING
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, F32, decode
from tests.families.running import run, unwritten, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256}, {"ADDRESS": True})
PRECISIONS = pytest.mark.parametrize("precision", [F32, F16, BF16], ids=str)


@PRECISIONS
def test_rows_are_exact_and_the_last_one_is_reached(device, rng, precision):
    problem = Problem(T=4, C=96, V=37)
    given = EMBEDDING.inputs(problem, precision, rng)
    given["token"][:] = [36, 0, 36, 17]
    expected = decode(given["table"], precision)[given["token"]]
    for params in variants(EMBEDDING, precision, device, problem, *SHAPES):
        found = run(device, EMBEDDING, precision, params, problem, given)["out_x"]
        np.testing.assert_array_equal(found, expected)


@PRECISIONS
def test_pages_together_give_the_whole_table(device, rng, precision):
    whole = Problem(T=6, C=64, V=50)
    given = EMBEDDING.inputs(whole, precision, rng)
    given["token"][:] = [0, 19, 20, 39, 40, 49]
    expected = decode(given["table"], precision)[given["token"]]
    params = variants(EMBEDDING, precision, device, whole)[0]
    for first, rows in ((0, 20), (20, 20), (40, 10)):
        page = Problem(T=6, C=64, V=rows)
        part = {**given, "table": given["table"][first : first + rows]}
        found = run(device, EMBEDDING, precision, params, page, part, {"first": first})["out_x"]
        mine = (given["token"] >= first) & (given["token"] < first + rows)
        np.testing.assert_array_equal(found[mine], expected[mine])
        assert unwritten(found[~mine]).all()


def test_a_token_beyond_the_table_reads_nothing(device, rng):
    problem = Problem(T=3, C=32, V=5)
    given = EMBEDDING.inputs(problem, F32, rng)
    given["token"][:] = [5, 2**32 - 1, 4]
    for params in variants(EMBEDDING, F32, device, problem, *SHAPES):
        found = run(device, EMBEDDING, F32, params, problem, given)["out_x"]
        assert unwritten(found[:2]).all()
        np.testing.assert_array_equal(found[2], given["table"][4])


def test_f16_subnormals_and_extremes_are_widened_exactly(device):
    bits = np.array([0x0001, 0x03FF, 0x0400, 0x7BFF, 0x8001, 0xFBFF, 0x8000, 0x3C00] * 4, np.uint16)
    problem = Problem(T=1, C=32, V=1)
    given = {"table": bits.view(np.float16)[None], "token": np.zeros(1, np.uint32)}
    for params in variants(EMBEDDING, F16, device, problem):
        found = run(device, EMBEDDING, F16, params, problem, given)["out_x"]
        np.testing.assert_array_equal(found[0], bits.view(np.float16).astype(np.float32))
