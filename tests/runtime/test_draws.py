"""Counter-based random numbers: repeatable, even, unrelated between seeds and counts."""

import numpy as np
import pytest

from kernelforge_runtime.text.draws import uniform

COUNT = 20_000


def test_a_number_depends_on_seed_and_count_alone():
    assert uniform(5, 9) == uniform(5, 9)
    assert len({uniform(seed, count) for seed in range(40) for count in range(40)}) > 1590


def test_both_halves_of_a_seed_count():
    assert len({uniform(seed, 0) for seed in (0, 1, 1 << 31, 1 << 32, 1 << 63)}) == 5


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 12345])
def test_numbers_are_even_over_counts_and_fit_24_bits(seed):
    found = np.array([uniform(seed, i) for i in range(COUNT)])
    assert found.min() >= 0 and found.max() < 1
    assert (found * 2**24 == np.floor(found * 2**24)).all()
    bins = np.bincount((found * 64).astype(int), minlength=64)
    chi2 = ((bins - COUNT / 64) ** 2 / (COUNT / 64)).sum()
    assert chi2 < 120  # 63 degrees of freedom: one in 10^5 is above


def test_neighbouring_counts_and_seeds_are_not_correlated():
    one = np.array([uniform(7, i) for i in range(COUNT)])
    for other in (one[1:], np.array([uniform(8, i) for i in range(COUNT - 1)])):
        assert abs(np.corrcoef(one[:-1], other)[0, 1]) < 4 / COUNT**0.5
