"""Robust statistics of timings: median, spread, when to stop, and whether one is faster.

Timings have a hard floor and a long upper tail (interrupts, clocks, other tenants), so everything
here is built on medians. Nothing here touches a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EARLY_STOP_FACTOR = 3.0
"""A variant that is this many times slower than the best so far is given up."""


def median(samples: Sequence[float]) -> float:
    """The median; NaN of nothing, and where a sample is NaN."""
    # Asked for after every sample; of so few NumPy's takes many times as long.
    ordered = sorted(samples)
    if not ordered or any(map(math.isnan, ordered)):
        return math.nan
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def spread(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median, in the samples' unit; NaN of nothing."""
    middle = median(samples)
    return median([abs(value - middle) for value in samples])


def relative_spread(samples: Sequence[float]) -> float:
    """`spread / median`: 0.01 means that half of the samples are within 1 % of the median."""
    middle = median(samples)
    return spread(samples) / middle if middle > 0 else math.nan


def outliers(samples: Sequence[float], factor: float = 5.0) -> list[int]:
    """Indices of samples further than `factor` scaled deviations above the median.

    Only slow ones count: nothing makes a kernel too fast by accident. 1.4826 scales the median
    absolute deviation to the standard deviation of a normal distribution.
    """
    deviation = 1.4826 * spread(samples)
    middle = median(samples)
    limit = middle + factor * max(deviation, 0.001 * middle)
    return [i for i, value in enumerate(samples) if value > limit]


def hopeless(
    samples: Sequence[float], incumbent: float | None, factor: float = EARLY_STOP_FACTOR
) -> bool:
    """True where even the fastest sample so far is `factor` times the incumbent's time."""
    return incumbent is not None and len(samples) > 0 and min(samples) > factor * incumbent


def enough(samples: Sequence[float], precision: float = 0.01, minimum: int = 5) -> bool:
    """True where the median is known to about `precision` (relative)."""
    return len(samples) >= minimum and median_error(samples) <= precision


def median_error(samples: Sequence[float]) -> float:
    """Relative standard error of the median; NaN of nothing.

    That of n normal samples is 1.2533 standard deviations / sqrt(n).
    """
    if not len(samples):
        return math.nan
    return 1.2533 * 1.4826 * relative_spread(samples) / math.sqrt(len(samples))


@dataclass(frozen=True)
class Interval:
    """A ratio of two times with its confidence interval; below 1 is faster."""

    ratio: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """True where the whole interval is below 1: a difference beyond noise."""
        return self.high < 1.0

    @property
    def slower(self) -> bool:
        """True where the whole interval is above 1."""
        return self.low > 1.0


def paired_ratio(
    candidate: Sequence[float],
    reference: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Median of the ratios of samples taken in turns, with a bootstrap confidence interval.

    Pairing by round takes slow drift (heat, other load) out of the comparison.
    Source: B. Efron, Bootstrap methods: another look at the jackknife, 1979 (percentile method).

    Args:
        candidate: one sample per round.
        reference: one sample per round, same length.
        confidence: of the interval.
        resamples: number of bootstrap draws.
        seed: of the draws; the result is the same on every call.

    Returns:
        The interval; (NaN, 0, inf) of fewer than two rounds, so neither faster nor slower.
    """
    rounds = min(len(candidate), len(reference))
    if rounds < 2:
        return Interval(math.nan, 0.0, math.inf)
    ratios = np.asarray(candidate[:rounds], np.float64) / np.asarray(reference[:rounds], np.float64)
    draws = np.random.default_rng(seed).integers(0, rounds, size=(resamples, rounds))
    medians = np.median(ratios[draws], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(medians, [tail, 1.0 - tail])
    return Interval(float(np.median(ratios)), float(low), float(high))


def drifted(times: Sequence[float], limit: float = 0.03) -> bool:
    """True where a fixed reference kernel's times moved by more than `limit` (relative)."""
    return len(times) >= 2 and max(times) > (1.0 + limit) * min(times)
