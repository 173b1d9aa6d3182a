"""argmax: of equals the lowest index, whatever the size of the vocabulary."""

import numpy as np
import pytest

from kernelforge.families.argmax import ARGMAX
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256, "VEC": 1}, {"VEC": 1}, {"ADDRESS": True})


def choose(device, logits):
    """What every variant chooses, once they agree."""
    problem = Problem(V=len(logits))
    found = {
        int(run(device, ARGMAX, F32, params, problem, {"in_x": logits})["out_token"][0])
        for params in variants(ARGMAX, F32, device, problem, *SHAPES)
    }
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("vocab", [1, 2, 3, 4, 5, 127, 130, 1001])
def test_the_largest_is_found_at_both_ends_of_any_vocabulary(device, rng, vocab):
    logits = rng.standard_normal(vocab).astype(np.float32)
    for index in {0, vocab - 1, vocab // 2}:
        raised = logits.copy()
        raised[index] = 10
        assert choose(device, raised) == index


@pytest.mark.parametrize("ties", [(0, 1), (3, 4), (5, 900), (2, 514, 515), (998, 999, 1000)])
def test_of_equals_the_lowest_index_wins(device, rng, ties):
    logits = -np.abs(rng.standard_normal(1001)).astype(np.float32)
    logits[list(ties)] = 1.5
    assert choose(device, logits) == ties[0]


def test_all_equal_logits_give_the_first(device):
    for value in (0.0, -7.0, np.finfo(np.float32).min):
        assert choose(device, np.full(333, value, np.float32)) == 0


def test_negative_logits_and_infinities_are_ordered(device):
    logits = np.full(50, -np.inf, np.float32)
    logits[37] = -1e30
    assert choose(device, logits) == 37
    logits[41] = -1e-30
    assert choose(device, logits) == 41
    logits[11] = np.inf
    assert choose(device, logits) == 11


def test_what_lies_behind_the_vocabulary_does_not_count(device):
    """Rows of the head are padded: their logits lie behind the last that counts."""
    padded = np.zeros(64, np.float32)
    padded[7], padded[50:] = 1, 100
    problem = Problem(V=50)
    for params in variants(ARGMAX, F32, device, problem, *SHAPES):
        found = run(device, ARGMAX, F32, params, problem, {"in_x": padded})["out_token"]
        assert found[0] == 7
