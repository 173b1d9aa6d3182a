"""deep_embed: the identity, s0 alone, columns, and tokens that do not see each other."""

import numpy as np
import pytest

from kernelforge.families.deep_embed import DEEP_EMBED, RANK
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(T=3, F=100, P=160, R=2048)
SHAPES = ({"WORKGROUP": 8}, {"WORKGROUP": 16, "ADDRESS": True}, {"WORKGROUP": 256})


def each(device, given, constants):
    for params in variants(DEEP_EMBED, F32, device, PROBLEM, *SHAPES):
        yield run(device, DEEP_EMBED, F32, params, PROBLEM, given, constants)


@pytest.mark.parametrize(("column", "rows_column"), [(100, 0), (128, 1024), (104, 12), (0, 512)])
def test_s_and_the_matrix_are_read_from_their_columns_and_no_other(
    device, rng, column, rows_column
):
    given = DEEP_EMBED.inputs(PROBLEM, F32, rng)
    constants = {"column": column, "rows_column": rows_column}
    expected = DEEP_EMBED.oracle(PROBLEM, F32, given, constants)
    read = np.zeros(160, bool)
    read[:100] = read[column : column + RANK] = True
    given["in_p"][:, ~read] = np.nan
    read = np.zeros(2048, bool)
    read[rows_column : rows_column + RANK * RANK] = True
    given["rows"][:, ~read] = np.nan
    for found in each(device, given, constants):
        assert np.isfinite(found["out_k"]).all()
        assert_close(DEEP_EMBED, PROBLEM, found, expected)


def test_a_row_of_zeros_leaves_s0_as_the_factor(device, rng):
    given = DEEP_EMBED.inputs(PROBLEM, F32, rng)
    given["rows"][:] = 0
    expected = given["in_p"][:, :100].astype(np.float64) * given["param"][RANK]
    for found in each(device, given, {"column": 128, "rows_column": 0}):
        assert_close(DEEP_EMBED, PROBLEM, found, {"out_k": expected})


def test_the_matrix_is_row_major_and_multiplied_by_a_row_vector(device, rng):
    """Only E[3, 5] is not zero: z is s[3] E[3, 5] at 5, and nothing elsewhere."""
    given = DEEP_EMBED.inputs(PROBLEM, F32, rng)
    given["rows"][:] = 0
    given["rows"][:, 3 * RANK + 5] = 2
    factor = 2 * given["in_p"][:, 128 + 3, None].astype(np.float64) * given["param"][5]
    expected = given["in_p"][:, :100] * (factor + given["param"][RANK])
    for found in each(device, given, {"column": 128, "rows_column": 0}):
        assert_close(DEEP_EMBED, PROBLEM, found, {"out_k": expected})


def test_tokens_do_not_see_each_other(device, rng):
    given = DEEP_EMBED.inputs(PROBLEM, F32, rng)
    constants = dict(DEEP_EMBED.constants(PROBLEM))
    expected = DEEP_EMBED.oracle(PROBLEM, F32, given, constants)
    for name in ("in_p", "rows"):
        given[name][1] = np.nan
    expected["out_k"][1] = np.nan
    for found in each(device, given, constants):
        assert_close(DEEP_EMBED, PROBLEM, found, expected)


def test_columns_that_are_not_there_are_refused():
    assert "R at least 1024" in str(DEEP_EMBED.refuses(Problem(T=1, F=32, P=64, R=1020)))
    assert "F must be a multiple of 4" in str(DEEP_EMBED.refuses(Problem(T=1, F=30, P=64, R=1024)))
