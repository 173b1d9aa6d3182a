"""Inputs rounded to int8 in blocks of 32: how exact, and at which edges."""

import numpy as np
import pytest

from kernelforge_runtime.int8_blocks import round_blocks, rounded_values


def test_no_value_is_further_off_than_half_a_step_of_its_block(rng):
    sizes = np.exp2(rng.integers(-100, 100, (64, 8))).astype(np.float32)
    x = rng.standard_normal((64, 8, 32), dtype=np.float32) * sizes[..., None]
    q, step = round_blocks(x.reshape(64, 256))
    off = np.abs(x - q.reshape(x.shape) * step[..., None].astype(np.float64))
    assert (off <= step[..., None] * (0.5 + 127 * 2.0**-15)).all()
    most = np.abs(x).max(-1)
    np.testing.assert_allclose(step, most / 127, rtol=2.0**-14)
    assert (np.abs(q.reshape(x.shape)).max(-1) == 127).all()


def test_whole_numbers_up_to_127_stay_what_they_are(rng):
    x = rng.integers(-127, 128, (5, 64)).astype(np.float32)
    x[:, ::32] = 127
    np.testing.assert_array_equal(rounded_values(x), x)
    np.testing.assert_array_equal(rounded_values(x.astype(np.float16)), x)


def test_what_was_rounded_stays_nearly_what_it_is(rng):
    once = rounded_values(rng.standard_normal((40, 96), dtype=np.float32))
    np.testing.assert_allclose(rounded_values(once), once, rtol=2.0**-13)


def test_the_largest_and_the_smallest_numbers_do_not_overflow():
    limits = np.finfo(np.float32)
    x = np.zeros((6, 32), np.float32)
    x[:, 3] = [2.0**127, -(2.0**127), 2.0**-111, 2.0**-112, limits.smallest_subnormal, 0.0]
    found = rounded_values(x)
    np.testing.assert_allclose(found[:3], x[:3], rtol=2.0**-14)
    assert (found[3:] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_makes_its_block_none_and_leaves_the_others(value):
    x = np.ones((1, 96), np.float32)
    x[0, 40] = value
    found = rounded_values(x)[0]
    assert np.isnan(found[32:64]).all()
    np.testing.assert_allclose(np.delete(found, range(32, 64)), 1.0, rtol=2.0**-14)


def test_a_part_of_a_block_is_refused():
    with pytest.raises(ValueError, match="rows of 48 inputs: a multiple of 32"):
        round_blocks(np.zeros((2, 48), np.float32))
