"""gemv where a row is too short for a loop that its lanes unroll: none of them enters it."""

import pytest

from kernelforge.families.gemv import GEMV
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import NF4, Q8
from tests.families.running import assert_close, run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.mark.parametrize("address", [0, 1], ids=["descriptor", "address"])
@pytest.mark.parametrize(
    ("precision", "columns", "unroll", "k"),
    [
        (Q8, 2, 2, 96),
        (Q8, 2, 4, 416),
        (NF4, 2, 2, 224),
        (NF4, 2, 2, 448),
        (NF4, 4, 4, 992),
    ],
    ids=str,
)
def test_sums_of_several_columns_are_right(device, rng, precision, columns, unroll, k, address):
    """Of elements there are fewer than lanes take at a time, but more than one lane takes."""
    lanes = device.info.subgroup_min
    form = {
        "WORKGROUP": lanes,
        "LANES": lanes,
        "ROWS": 1,
        "COLS": columns,
        "VEC": 4,
        "UNROLL": unroll,
        "REDUCE": "subgroup",
        "INPUT": "direct",
        "UNPACK": "shuffle" if precision == NF4 and lanes >= 8 else "half",
        "SCALES": "own",
        "ADDRESS": address,
        "WORD": 32,
        "LAYOUT": "rows",
    }
    problem = Problem(M=64, K=k, S=1, T=columns, X=32, Y=32)
    given = GEMV.inputs(problem, precision, rng)
    expected = GEMV.oracle(problem, precision, given, {})
    tried = variants(GEMV, precision, device, problem, form)
    assert any(form.items() <= params.items() for params in tried)
    for params in tried:
        found = run(device, GEMV, precision, params, problem, given)
        assert_close(GEMV, problem, found, expected, params)
