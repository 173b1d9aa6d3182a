"""Statistics of timings, on numbers whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernelforge.measure import statistics


def test_median_and_spread_ignore_one_wild_sample() -> None:
    samples = [10.0, 10.2, 9.9, 10.1, 500.0]
    assert statistics.median(samples) == 10.1
    assert statistics.spread(samples) == pytest.approx(0.1)


def test_nothing_has_no_median() -> None:
    assert math.isnan(statistics.median([]))
    assert math.isnan(statistics.spread([]))


@pytest.mark.parametrize("count", [1, 2, 5, 6, 500])
def test_median_and_spread_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).lognormal(size=count)
    middle = np.median(samples)
    assert statistics.median(samples.tolist()) == middle
    assert statistics.spread(samples.tolist()) == np.median(np.abs(samples - middle))
    assert math.isnan(statistics.median([*samples, math.nan]))


def test_outliers_are_slow_ones_only() -> None:
    samples = [10.0, 10.1, 9.9, 10.0, 14.0, 3.0]
    assert statistics.outliers(samples) == [4]


def test_a_variant_is_hopeless_when_its_fastest_sample_is_three_times_too_slow() -> None:
    assert statistics.hopeless([31.0, 40.0], 10.0)
    assert not statistics.hopeless([29.0, 90.0], 10.0)
    assert not statistics.hopeless([31.0], None)
    assert not statistics.hopeless([], 10.0)


def test_enough_needs_five_samples_and_a_known_median() -> None:
    assert not statistics.enough([1.0, 1.0, 1.0, 1.0])
    assert statistics.enough([1.0] * 5)
    assert not statistics.enough([1.0, 1.5, 0.7, 1.3, 0.9])


def test_paired_ratio_sees_a_small_gain_through_drift() -> None:
    rng = np.random.default_rng(3)
    drift = np.linspace(1.0, 1.5, 15)
    reference = 100.0 * drift * (1 + 0.005 * rng.standard_normal(15))
    candidate = 96.0 * drift * (1 + 0.005 * rng.standard_normal(15))
    found = statistics.paired_ratio(candidate.tolist(), reference.tolist())
    assert found.faster
    assert found.ratio == pytest.approx(0.96, abs=0.01)


def test_paired_ratio_rarely_calls_equal_things_different() -> None:
    rng = np.random.default_rng(4)
    called = 0
    for trial in range(200):
        a, b = 1 + 0.02 * rng.standard_normal((2, 15))
        found = statistics.paired_ratio(a.tolist(), b.tolist(), seed=trial)
        called += found.faster or found.slower
    assert called <= 200 * 0.12


def test_paired_ratio_of_one_round_decides_nothing() -> None:
    found = statistics.paired_ratio([1.0], [2.0])
    assert not found.faster
    assert not found.slower


def test_drift_is_a_change_of_more_than_three_percent() -> None:
    assert statistics.drifted([100.0, 104.0])
    assert not statistics.drifted([100.0, 102.0])
    assert not statistics.drifted([100.0])
