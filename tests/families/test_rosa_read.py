"""rosa_read: added or not, no match against a symbol of set bits, and equal to NumPy's."""

import numpy as np
import pytest

from kernelforge.families.rosa_read import ROSA_READ
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.rosa import NO_MATCH
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.ops.numpy_rosa import read
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256, "ADDRESS": True})


@pytest.mark.parametrize("bits", [1, 4])
def test_it_equals_numpy_s_bit_for_bit(device, rng, bits):
    problem = Problem(T=3, S=37, Q=bits)
    given = ROSA_READ.inputs(problem, F32, rng)
    wanted = read(given["symbols"], given["values"], bits)
    for params in variants(ROSA_READ, F32, device, problem, *SHAPES):
        alone = run(device, ROSA_READ, F32, params, problem, given, {"add": 0})
        np.testing.assert_array_equal(alone["out_x"], wanted)
        added = run(device, ROSA_READ, F32, params, problem, given, {"add": 1})
        np.testing.assert_array_equal(added["out_x"], given["out_x"] + wanted)


def test_without_adding_what_was_there_does_not_matter(device, rng):
    problem = Problem(T=2, S=5, Q=4)
    given = ROSA_READ.inputs(problem, F32, rng)
    given["out_x"][:] = np.nan
    for params in variants(ROSA_READ, F32, device, problem, *SHAPES):
        found = run(device, ROSA_READ, F32, params, problem, given, {"add": 0})["out_x"]
        assert np.isfinite(found).all()


def test_no_match_is_not_the_symbol_whose_bits_are_all_set(device):
    """Values number what they stand for: set 0 to 3, clear 10 to 13, no match 20 to 23."""
    values = (np.arange(4) + np.array([[0], [10], [20]])).astype(np.float32)[:, None]
    given = {
        "symbols": np.array([[15], [NO_MATCH], [0], [5]], np.uint32),
        "values": values,
        "out_x": np.zeros((4, 1, 4), np.float32),
    }
    problem = Problem(T=4, S=1, Q=4)
    for params in variants(ROSA_READ, F32, device, problem, *SHAPES):
        found = run(device, ROSA_READ, F32, params, problem, given, {"add": 0})["out_x"]
        assert found[:, 0].tolist() == [
            [0, 1, 2, 3],
            [20, 21, 22, 23],
            [10, 11, 12, 13],
            [0, 11, 2, 13],
        ]
