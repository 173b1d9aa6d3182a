"""bf16_to_f16: every number below 65536, as NumPy rounds it, and nothing behind the end."""

import numpy as np
import pytest

from kernelforge.families.bf16_to_f16 import BEYOND, BF16_TO_F16
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import BF16, F16, decode
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = (
    {"WORKGROUP": 4},
    {"QUADS": 4},
    {"ADDRESS": True},
    {"ADDRESS": True, "WORD": 64, "QUADS": 8, "WORKGROUP": 256},
)


def rounded(words):
    return decode(words.view(np.uint16), BF16).astype(np.float16).view(np.uint32)


def test_every_number_of_both_signs_is_rounded_in_either_half_of_a_word(device, rng):
    below = np.arange(BEYOND, dtype=np.uint16)
    numbers = np.concatenate([below, below | 0x8000])
    both = np.concatenate([numbers, rng.permutation(numbers)])
    words = both.reshape(2, -1).T.copy().view(np.uint32).reshape(-1)
    words = np.concatenate([words, words >> 16 | words << 16])
    problem = Problem(N=words.size // 4)
    for params in variants(BF16_TO_F16, F16, device, problem, *SHAPES):
        found = run(device, BF16_TO_F16, F16, params, problem, {"weights": words})["weights"]
        np.testing.assert_array_equal(found.reshape(-1), rounded(words))


def test_ties_go_to_even_and_what_is_too_small_to_zero_of_its_sign(device):
    least = 2.0**-24
    numbers = np.array(
        [0.5, 0.50390625, 1.0, 1.5, 2.5, 3.5, 6.5, 127.5, 0.25, -0.5, -1.5, 0.0, -0.0, 2.0**-100],
        np.float32,
    )
    expected = [0, 1, 1, 2, 2, 4, 6, 128, 0, 0, -2, 0, 0, 0]
    bits = np.zeros(16, np.uint16)
    bits[:14] = (numbers * np.float32(least)).view(np.uint32) >> 16
    for params in variants(BF16_TO_F16, F16, device, Problem(N=2), *SHAPES):
        given = {"weights": bits.view(np.uint32)}
        found = run(device, BF16_TO_F16, F16, params, Problem(N=2), given)["weights"]
        halves = found.reshape(-1).view(np.float16)[:14]
        assert (halves.astype(np.float64) / least).tolist() == expected
        assert (np.signbit(halves) == np.signbit(numbers)).all()


@pytest.mark.parametrize("quads", [1, 63, 64, 65, 1250])
def test_nothing_behind_the_end_is_touched(device, rng, quads):
    given = rng.integers(0, BEYOND, 8 * quads + 600, dtype=np.uint16).view(np.uint32)
    for params in variants(BF16_TO_F16, F16, device, Problem(N=quads), *SHAPES):
        found = run(device, BF16_TO_F16, F16, params, Problem(N=quads), {"weights": given})
        np.testing.assert_array_equal(found["weights"].reshape(-1), rounded(given)[: 4 * quads])
