"""q8 and nf4: exact bounds of each block's error, the layout bit by bit, and nothing lost twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelforge_runtime.dtypes import F16, NF4, Q8
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import BLOCK, NF4_LEVELS, Quantized, dequantize, quantize

BOTH = pytest.mark.parametrize("dtype", [Q8, NF4], ids=str)
F32_ROUNDING = 1 + 2.0**-21
SUBNORMAL_STEP = 2.0**-24
LEVELS = NF4_LEVELS.astype(np.float64)
HALF_A_STEP = {Q8: 0.5, NF4: np.diff(LEVELS).max() / 2}
WHAT_SCALES_TO = {Q8: 127, NF4: 1}
"""The largest weight of a block over its scale."""


def scales(quantized: Quantized) -> np.ndarray:
    """Float64 [M, K / 32]."""
    return quantized.scale.view(np.float16).astype(np.float64)


def assert_bounded(values: np.ndarray, dtype) -> None:
    """Half a step; where the scale is subnormal, what its own rounding adds."""
    quantized = quantize(values, dtype)
    scale = scales(quantized)
    error = np.abs(values.astype(np.float64) - dequantize(quantized, dtype))
    worst = error.reshape(*scale.shape, BLOCK).max(-1)
    allowed = HALF_A_STEP[dtype] * scale * F32_ROUNDING
    allowed += np.where(scale < 2.0**-14, WHAT_SCALES_TO[dtype] * SUBNORMAL_STEP, 0)
    assert (worst <= allowed).all(), (worst / allowed).max()


@BOTH
@pytest.mark.parametrize("size", [1e-9, 1e-7, 3e-6, 1e-4, 0.02, 1.0, 5000.0])
def test_no_weight_is_off_by_more_than_half_the_widest_step_of_its_block(dtype, size, rng):
    values = (rng.standard_normal((37, 192)) * size).astype(np.float32)
    values *= rng.uniform(0.1, 3, (37, 1)).astype(np.float32)
    assert_bounded(values, dtype)


@BOTH
@given(
    st.lists(
        st.floats(-65504, 65504, width=32, allow_subnormal=True), min_size=1, max_size=2 * BLOCK
    )
)
def test_any_weights_are_bounded_and_survive_a_second_rounding(dtype, found):
    values = np.resize(np.array(found, np.float32), (1, 2 * BLOCK))
    assert_bounded(values, dtype)
    assert_same_twice(values, dtype)


def assert_same_twice(values: np.ndarray, dtype) -> None:
    once = quantize(values, dtype)
    twice = quantize(dequantize(once, dtype), dtype)
    np.testing.assert_array_equal(once.scale, twice.scale)
    np.testing.assert_array_equal(once.weight, twice.weight)


@BOTH
def test_decoded_weights_encode_to_the_same_bits_at_every_size_of_scale(dtype, rng):
    sizes = 2.0 ** np.linspace(-26, 14, 4000)[:, None]
    values = rng.uniform(-1, 1, (4000, 64)) * sizes
    assert_same_twice(values.astype(np.float32), dtype)


@BOTH
def test_zeros_stay_zeros_beside_other_blocks(dtype, rng):
    values = rng.standard_normal((3, 128)).astype(np.float32)
    values[1] = 0
    values[2, 32:64] = -0.0
    decoded = dequantize(quantize(values, dtype), dtype)
    assert not decoded[1].any()
    assert not decoded[2, 32:64].any()
    assert decoded[2, :32].any()
    assert decoded[2, 64:].any()


def test_a_q8_weight_is_a_byte_above_128_with_the_lowest_byte_first():
    values = np.zeros((1, 64), np.float32)
    values[0, :6] = [127, 1, -127, 0, 5, -3]
    values[0, 32] = 254
    quantized = quantize(values, Q8)
    assert quantized.weight.dtype == quantized.scale.dtype == np.uint32
    assert quantized.weight.shape == (1, 16)
    assert quantized.weight[0, :2].tolist() == [0x80_01_81_FF, 0x80_80_7D_85]
    assert quantized.scale.tolist() == [[0x4000_3C00]]  # 2.0 and 1.0 as float16


def test_an_nf4_weight_is_the_index_of_its_level_with_the_lowest_bits_first():
    values = np.concatenate([NF4_LEVELS, np.zeros(16, np.float32), 4 * NF4_LEVELS, np.ones(16)])
    quantized = quantize(values[None].astype(np.float32), NF4)
    ramp, zeros = [0x76543210, 0xFEDCBA98], [0x77777777, 0x77777777]
    quarters = [0xAAAAAAAA, 0xAAAAAAAA]  # 1 of 4: level 10 is 0.2461
    assert quantized.weight.tolist() == [ramp + zeros + ramp + quarters]
    assert quantized.scale.tolist() == [[0x4400_3C00]]  # 4.0 and 1.0 as float16


def test_nf4_takes_the_nearest_of_its_levels(rng):
    values = rng.uniform(-1, 1, (50, 64)).astype(np.float32)
    values[:, ::32] = 1.0
    nearest = LEVELS[np.abs(values[..., None] - LEVELS).argmin(-1)]
    np.testing.assert_array_equal(dequantize(quantize(values, NF4), NF4), nearest.astype("f4"))


@BOTH
def test_weights_that_fit_no_scale_are_refused_by_name(dtype):
    values = np.zeros((9, 64), np.float32)
    values[7, 40] = 60000 * WHAT_SCALES_TO[dtype]
    assert np.isfinite(dequantize(quantize(values, dtype), dtype)).all()
    for bad in (70000.0 * WHAT_SCALES_TO[dtype], np.inf, np.nan):
        values[7, 40] = bad
        with pytest.raises(ModelError, match=f"blocks.3.key does not fit {dtype}"):
            quantize(values, dtype, "blocks.3.key")


@BOTH
def test_rows_are_encoded_alike_however_many_there_are(dtype, rng):
    values = rng.standard_normal((300, 1024)).astype(np.float32)
    whole = quantize(values, dtype)
    for row in (0, 127, 128, 299):
        one = quantize(values[row : row + 1], dtype)
        np.testing.assert_array_equal(whole.weight[row], one.weight[0])
        np.testing.assert_array_equal(whole.scale[row], one.scale[0])
    assert whole.nbytes == (dtype.bits + 0.5) * values.size / 8


def test_other_formats_and_odd_rows_are_refused():
    with pytest.raises(ValueError, match="f16 has no blocks"):
        quantize(np.zeros((1, 64), np.float32), F16)
    with pytest.raises(ValueError, match="multiple of 64"):
        quantize(np.zeros((1, 96), np.float32), Q8)
