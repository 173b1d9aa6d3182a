"""last_token: each sequence's own last row, whatever its neighbours are."""

import numpy as np
import pytest

from kernelforge.families.last_token import LAST_TOKEN
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


def test_padding_leaves_its_row_alone_and_positions_do_not_matter(device, rng):
    problem = Problem(T=6, C=40, B=3)
    given = {
        "in_x": rng.standard_normal((6, 40), dtype=np.float32),
        "segment": np.array([[3, 2, 1, 77], [0, 0, 0, 0], [0, 3, 2, 5]], np.uint32),
        "out_y": rng.standard_normal((3, 40), dtype=np.float32),
    }
    for params in variants(LAST_TOKEN, F32, device, problem, {"WORKGROUP": 4}, {"ADDRESS": True}):
        found = run(device, LAST_TOKEN, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found[0], given["in_x"][4])
        np.testing.assert_array_equal(found[1], given["out_y"][1])
        np.testing.assert_array_equal(found[2], given["in_x"][2])
