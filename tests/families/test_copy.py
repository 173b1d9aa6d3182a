"""copy: every bit, and only as many as asked for."""

import numpy as np
import pytest

from kernelforge.families.copy import COPY
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.mark.parametrize("size", [4, 252, 256, 260, 5000])
def test_every_bit_is_copied_and_nothing_behind_the_end(device, rng, size):
    bits = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    given = {"in_x": np.concatenate([bits, np.ones(300, np.uint32)]).view(np.float32)}
    problem = Problem(E=size)
    for params in variants(COPY, F32, device, problem, {"WORKGROUP": 4}, {"ADDRESS": True}):
        found = run(device, COPY, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found.view(np.uint32), bits)


def test_a_size_that_is_no_multiple_of_four_is_refused():
    assert COPY.refuses(Problem(E=6)) == "E must be a multiple of 4, found 6"
