"""rosa_pack: what counts as a set bit, what stays of shared words, and who is left alone."""

import numpy as np
import pytest

from kernelforge.families.rosa_pack import ROSA_PACK
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.rosa import symbols_per_word, words
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.ops.numpy_rosa import pack, unpack
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SHAPES = ({"WORKGROUP": 4}, {"WORKGROUP": 256, "ADDRESS": True})


def packings(device, x, segment, history, bits, *changes):
    """The history after one step, of every variant."""
    tokens, roles, streams = x.shape[:3]
    segment = np.array(segment, np.uint32)
    width = history.shape[3]
    problem = Problem(T=tokens, S=streams, R=roles, W=width, B=len(history), Q=bits)
    for params in variants(ROSA_PACK, F32, device, problem, *changes):
        given = {"in_x": x, "segment": segment, "history": history}
        yield run(device, ROSA_PACK, F32, params, problem, given)["history"]


def test_only_what_is_above_zero_sets_a_bit(device):
    values = [0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, -np.nan, 1e-30, -2.0, 3e38]
    x = np.array(values, np.float32)[None, None, :, None]
    history = np.zeros((1, 1, len(values), 1), np.uint32)
    for found in packings(device, x, [[0, 1, 0, 0]], history, 1, *SHAPES):
        assert found[0, 0, :, 0].tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1]


def test_the_lowest_channel_is_the_lowest_bit_and_newer_symbols_are_higher(device):
    x = np.array([[1, -1, -1, -1], [-1, 1, 1, -1]], np.float32)[:, None, None]
    for found in packings(device, x, [[0, 2, 0, 1]], np.full((1, 1, 1, 1), 15, np.uint32), 4):
        assert found.item() == 0x61F


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_earlier_symbols_stay_and_what_lies_above_the_newest_becomes_zero(device, rng, bits):
    per = symbols_per_word(bits)
    for position in sorted({0, 1, per - 1, per, 2 * per + 3}):
        for count in sorted({1, 2, per, per + 1, 33}):
            width = words(position + count, bits) + 1
            before = rng.integers(0, 2**32, (1, 3, 5, width), dtype=np.uint32)
            x = rng.integers(0, 2**32, (count, 3, 5), dtype=np.uint32)
            if bits < 32:
                x = rng.standard_normal((count, 3, 5, bits)).astype(np.float32)
            wanted = before.copy()
            pack(wanted[0], x, bits, position)
            for found in packings(device, x, [[0, count, 0, position]], before, bits):
                np.testing.assert_array_equal(found, wanted)
                old = unpack(before[0], bits, position)
                np.testing.assert_array_equal(unpack(found[0], bits, position), old)
                above = (position + count) % per * bits
                assert not above or not (found[0, :, :, width - 2] >> np.uint32(above)).any()
                np.testing.assert_array_equal(found[..., -1], before[..., -1])


def test_each_segment_writes_its_own_slot_and_padding_none(device, rng):
    x = rng.standard_normal((50, 1, 6, 1)).astype(np.float32)
    before = rng.integers(0, 2**32, (4, 1, 6, 3), dtype=np.uint32)
    segment = [[34, 7, 3, 60], [2**32 - 1, 0, 2**32 - 1, 5], [1, 33, 0, 31], [0, 1, 2, 0]]
    wanted = before.copy()
    for first, count, slot, position in segment:
        if count:
            pack(wanted[slot], x[first : first + count], 1, position)
    for found in packings(device, x, segment, before, 1, *SHAPES):
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(found[1], before[1])


def test_a_position_beyond_the_history_writes_nothing(device, rng):
    """A host's mistake must not reach the next stream's words."""
    before = rng.integers(0, 2**32, (1, 1, 2, 2), dtype=np.uint32)
    x = np.ones((3, 1, 2, 1), np.float32)
    for found in packings(device, x, [[0, 3, 0, 64]], before, 1, *SHAPES):
        np.testing.assert_array_equal(found, before)
