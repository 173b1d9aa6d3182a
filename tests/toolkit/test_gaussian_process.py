"""The process that chooses: what it predicts is the textbook's, however it came to its history."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kernelforge.tune import gaussian_process
from kernelforge.tune.encoded import Encoded, Floats
from kernelforge.tune.gaussian_process import GaussianProcess


@pytest.fixture
def encoded() -> Encoded:
    grid = itertools.product((1, 2, 4, 8, 16), (0, 1, 2), ("a", "b", "c"), (7,))
    return Encoded([{"x": x, "y": y, "z": z, "fixed": f} for x, y, z, f in grid])


def measured(encoded: Encoded, count: int) -> tuple[np.ndarray, Floats]:
    rng = np.random.default_rng(4)
    history = rng.choice(encoded.size, count, replace=False)
    codes = encoded.codes[history]
    return history, np.abs(codes[:, 0] - 3.0) + 0.3 * codes[:, 1] + 0.1 * rng.random(count)


def textbook(process: GaussianProcess, encoded: Encoded, history, target) -> tuple[Floats, Floats]:
    """Mean and deviation with all inverses written out, given the scales it found."""

    def kernel(a, b):
        return np.exp(-np.tensordot(1 / process._scales, encoded.distances(a, b), axes=1))

    inverse = np.linalg.inv(kernel(history, history) + process._nugget * np.eye(len(history)))
    level = (inverse @ target).sum() / inverse.sum()
    variance = (target - level) @ inverse @ (target - level) / len(target)
    across = kernel(np.arange(encoded.size), history)
    mean = level + across @ inverse @ (target - level)
    left = np.maximum(1 - np.einsum("ij,jk,ik->i", across, inverse, across), 1e-7)
    return mean, np.sqrt(variance * left)


@pytest.mark.parametrize("draws", [False, True])
def test_one_measurement_after_another_predicts_what_the_textbook_does(encoded, draws) -> None:
    process = GaussianProcess(encoded, draws)
    history, target = measured(encoded, 30)
    rng = np.random.default_rng(1)
    for count in range(4, 31):
        points, mean, deviation = process.predict(history[:count], target[:count], rng)
        expected = textbook(process, encoded, history[:count], target[:count])
        assert np.array_equal(points, np.arange(encoded.size))
        assert np.allclose(mean, expected[0], atol=2e-3)
        assert np.allclose(deviation, expected[1], atol=5e-3)


def test_a_history_in_another_order_predicts_the_same(encoded) -> None:
    history, target = measured(encoded, 20)
    process = GaussianProcess(encoded)
    _, mean, _ = process.predict(history, target, np.random.default_rng(1))
    _, again, _ = process.predict(history[::-1], target[::-1], np.random.default_rng(1))
    assert np.allclose(mean, again, atol=2e-3)


def test_a_copy_learns_by_itself(encoded) -> None:
    history, target = measured(encoded, 26)
    process, alone = GaussianProcess(encoded), GaussianProcess(encoded)
    for one in (process, alone):
        one.predict(history[:21], target[:21], np.random.default_rng(1))
    other = process.copy()
    other.predict(history[[*range(21), 25, 24]], -target[:23], np.random.default_rng(2))
    _, mean, deviation = process.predict(history[:24], target[:24], np.random.default_rng(3))
    _, known, spread = alone.predict(history[:24], target[:24], np.random.default_rng(3))
    assert np.array_equal(mean, known)
    assert np.array_equal(deviation, spread)


@pytest.mark.parametrize("expects", [False, True])
def test_a_parameter_that_does_not_matter_gets_a_longer_scale_than_one_that_does(
    encoded, expects
) -> None:
    history, target = measured(encoded, 40)
    process = GaussianProcess(encoded, expects=expects)
    process.predict(history, target, np.random.default_rng(0))
    assert process._scales[2] > process._scales[0]


def test_of_next_to_nothing_the_scales_are_what_was_expected(encoded) -> None:
    history, _ = measured(encoded, 4)
    target = np.array([0.1, -0.2, 0.3, -0.2])
    process = GaussianProcess(encoded, expects=True)
    process.predict(history, target, np.random.default_rng(0))
    assert np.all((process._scales >= 0.4) & (process._scales <= 8.0))
    assert np.exp(np.log(process._scales).mean()) > 0.9


def test_of_a_set_too_large_a_part_is_predicted_and_all_around_the_best(
    encoded, monkeypatch
) -> None:
    monkeypatch.setattr(gaussian_process, "MOST_POINTS", 12)
    history, target = measured(encoded, 10)
    process = GaussianProcess(encoded)
    points, mean, _ = process.predict(history, target, np.random.default_rng(0))
    assert len(points) == len(mean) < encoded.size
    best = int(history[np.argmin(target)])
    near = np.flatnonzero(encoded.changes(np.arange(encoded.size), best) <= 2)[:12]
    assert set(near) <= set(points)
    whole = GaussianProcess(encoded)
    monkeypatch.undo()
    _, everything, _ = whole.predict(history, target, np.random.default_rng(0))
    assert np.allclose(mean, everything[points], atol=2e-3)
