"""Element types: sizes, and bfloat16 by rounding to nearest even."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelforge_runtime.dtypes import (
    BF16,
    DTYPES,
    F16,
    F32,
    QUANTIZED,
    bf16_to_float,
    decode,
    encode,
    float_to_bf16,
)


def test_names_sizes_and_numpy_twins_agree():
    for name, dtype in DTYPES.items():
        assert str(dtype) == dtype.name == name
        assert dtype.np.newbyteorder("<") == dtype.np
        in_a_word = 32 // dtype.bits if dtype in QUANTIZED else 1
        assert dtype.np.itemsize * 8 == in_a_word * dtype.bits
        assert dtype.nbytes(7 * in_a_word) == 7 * dtype.np.itemsize


def test_every_bfloat16_survives_widening_and_rounding():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bf16_to_float(bits)
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(float_to_bf16(wide)[number], bits[number])
    assert np.isnan(bf16_to_float(float_to_bf16(wide)))[~number].all()


def test_halves_round_to_even_and_just_above_rounds_up():
    words = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    expected = [0x3F80, 0x3F82, 0x3F81, 0x3F80]
    assert float_to_bf16(words.view(np.float32)).tolist() == expected


def test_infinities_zeros_and_nan_keep_their_kind():
    values = np.array([np.inf, -np.inf, 0.0, -0.0, np.nan], np.float32)
    assert float_to_bf16(values)[:4].tolist() == [0x7F80, 0xFF80, 0, 0x8000]
    low_nan = np.array([0x7F800001], np.uint32).view(np.float32)  # its upper half is infinity's
    assert np.isnan(bf16_to_float(float_to_bf16(low_nan))).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_to_the_nearest(values):
    exact = np.array(values, np.float32)
    exact = exact[np.abs(exact) < 3.38e38]  # beyond lie infinity and NaN
    bits = float_to_bf16(exact).astype(np.int64)
    rounded = bf16_to_float(bits.astype(np.uint16)).astype(np.float64)
    finite = np.isfinite(rounded)
    for step in (-1, 1):
        near = bf16_to_float(((bits + step) & 0xFFFF).astype(np.uint16)).astype(np.float64)
        better = np.abs(near - exact) < np.abs(rounded - exact)
        assert not (better & finite & np.isfinite(near)).any()


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_encode_and_decode_are_inverse_on_what_the_type_can_hold(dtype, rng):
    values = rng.integers(-128, 128, (3, 5)).astype(np.float32)
    stored = encode(values, dtype)
    assert stored.dtype == dtype.np
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(decode(stored, dtype), values)
    np.testing.assert_array_equal(decode(encode(values.T, dtype), dtype), values.T)
    assert decode(stored, dtype).dtype == np.float32
