"""Drift of a device: seen, taken out of the trials' times, or left alone as noise."""

from __future__ import annotations

import pytest

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.drift import Drift


def timed(ns: float, spread: float = 0.0) -> Measurement:
    samples = (ns - spread, ns, ns + spread)
    return Measurement(
        "small", "f32", "M8.K8", "v", Outcome.OK, median_ns=ns, spread_ns=spread, samples_ns=samples
    )


def drift(*times: tuple[int, float], spread: float = 0.0) -> Drift:
    found = Drift()
    for number, ns in times:
        found.add(number, timed(ns, spread))
    return found


def test_a_device_that_became_slower_has_its_later_times_corrected() -> None:
    found = drift((0, 100.0), (10, 120.0), (20, 140.0))
    assert found.moved
    for number, slowdown in ((0, 1.0), (5, 1.1), (10, 1.2), (15, 1.3), (20, 1.4), (30, 1.4)):
        assert found.slowdown_at(number) == pytest.approx(slowdown)
    corrected = found.correct(timed(240.0), 10)
    assert corrected.median_ns == 240.0
    assert corrected.corrected_ns == corrected.time_ns == pytest.approx(200.0)


def test_the_order_of_variants_measured_at_different_speeds_is_put_right() -> None:
    found = drift((0, 100.0), (20, 200.0))
    early, late = timed(90.0), timed(160.0)
    assert early.median_ns < late.median_ns
    assert found.correct(late, 20).time_ns < found.correct(early, 0).time_ns


def test_a_move_within_three_percent_is_no_drift() -> None:
    found = drift((0, 100.0), (10, 102.5))
    assert not found.moved
    assert found.slowdown_at(10) == 1.0


def test_a_move_within_the_noise_of_the_references_is_left_alone() -> None:
    assert drift((0, 100.0), (10, 120.0), spread=1.0).slowdown_at(10) == pytest.approx(1.2)
    assert drift((0, 100.0), (10, 120.0), spread=20.0).slowdown_at(10) == 1.0


def test_references_come_back_from_their_plain_form() -> None:
    found = drift((0, 100.0), (10, 130.0), spread=1.0)
    again = Drift(found.to_json())
    assert again.slowdown_at(7) == found.slowdown_at(7) != 1.0
    assert Drift().slowdown_at(3) == 1.0
