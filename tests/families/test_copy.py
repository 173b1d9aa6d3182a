"""copy: every bit of the slots in use, and nothing else."""

import numpy as np
import pytest

from kernelforge.families.copy import COPY
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"ADDRESS": True})
NOWHERE = 1 << 20
"""Where a segment without tokens may say that it is: far beyond every buffer."""


def bits_of(rng, *shape):
    return rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("size", [4, 252, 256, 260, 5000])
def test_every_bit_is_copied_and_nothing_behind_the_end(device, rng, size):
    problem = Problem(L=1, B=1, E=size)
    given = {
        "in_x": bits_of(rng, size + 300),
        "segment": np.array([[0, 1, 0, 0]], np.uint32),
    }
    for params in variants(COPY, F32, device, problem, *SHAPES):
        found = run(device, COPY, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(
            found.view(np.uint32).reshape(-1), given["in_x"][:size].view(np.uint32)
        )


def test_only_the_slots_of_segments_with_tokens_are_copied(device, rng):
    problem = Problem(L=3, B=4, E=40)
    given = {
        "in_x": bits_of(rng, 3, 4, 40),
        "out_y": bits_of(rng, 3, 4, 40),
        "segment": np.array(
            [[0, 2, 3, 0], [NOWHERE, 0, NOWHERE, 0], [2, 1, 0, 0], [0, 0, 1, 0]], np.uint32
        ),
    }
    expected = given["out_y"].view(np.uint32).copy()
    expected[:, [3, 0]] = given["in_x"].view(np.uint32)[:, [3, 0]]
    for params in variants(COPY, F32, device, problem, *SHAPES):
        found = run(device, COPY, F32, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found.view(np.uint32), expected)


def test_the_distance_of_entries_is_a_constant_of_its_own(device, rng):
    """Twenty elements from entry to entry, in which rows of eight stand."""
    memory, problem = (3, 3, 8), Problem(L=3, B=3, E=8)
    given = {
        "in_x": bits_of(rng, *memory),
        "out_y": bits_of(rng, *memory),
        "segment": np.array([[0, 1, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint32),
    }
    expected = given["out_y"].view(np.uint32).copy().reshape(-1)
    source = given["in_x"].view(np.uint32).reshape(-1)
    for entry in range(3):
        at = entry * 20 + 16
        expected[at : at + 8] = source[at : at + 8]
    for params in variants(COPY, F32, device, problem, *SHAPES):
        found = run(device, COPY, F32, params, problem, given, {"stride": 20})["out_y"]
        np.testing.assert_array_equal(found.view(np.uint32).reshape(-1), expected)


def test_a_size_that_is_no_multiple_of_four_is_refused():
    assert COPY.refuses(Problem(L=1, B=1, E=6)) == "E must be a multiple of 4, found 6"
