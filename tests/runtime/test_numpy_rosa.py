"""ROSA in NumPy against the automaton, the recorded answers, and itself in chunks."""

import numpy as np
import pytest

from kernelforge_runtime.abi.rosa import NO_MATCH, symbols_per_word, words
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.ops import numpy_rosa
from kernelforge_runtime.ops.numpy_rosa import match, pack, read, unpack
from tests.families.rosa_streams import KINDS, answers, draw, packed, vectors


def test_every_recorded_case_has_its_answers(shared):
    cases = list(vectors(shared))
    assert len(cases) > 20
    for streams, bits, wanted in cases:
        found = match(packed(streams, bits), bits, 0, streams.shape[2])
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("roles", [1, 3])
@pytest.mark.parametrize("bits", [1, 4, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_streams_equal_the_automaton(rng, kind, bits, roles):
    """36 times 65 streams."""
    for count, length in ((50, 40), (15, 257)):
        streams = draw(kind, roles, count, length, bits, rng)
        found = match(packed(streams, bits), bits, 0, length)
        np.testing.assert_array_equal(found, answers(streams))


@pytest.mark.parametrize("kind", ["even", "constant", "periodic", "followed"])
@pytest.mark.parametrize("bits", [1, 4, 32])
@pytest.mark.parametrize("chunk", [1, 7, 32, 33])
def test_chunks_give_what_the_whole_gives(rng, chunk, bits, kind):
    streams = draw(kind, 3, 6, 70, bits, rng)
    history = np.full((3, 6, words(70, bits)), 0xFFFFFFFF, np.uint32)
    found = []
    for first in range(0, 70, chunk):
        count = min(chunk, 70 - first)
        pack(history, np.moveaxis(streams[:, :, first : first + count], 2, 0), bits, first)
        found.append(match(history, bits, first, count))
    np.testing.assert_array_equal(np.concatenate(found), answers(streams))
    np.testing.assert_array_equal(unpack(history, bits, 70), streams)


def test_streams_taken_in_groups_give_the_same(rng, monkeypatch):
    history = packed(draw("rare", 3, 10, 100, 1, rng), 1)
    wanted = match(history, 1, 60, 40)
    monkeypatch.setattr(numpy_rosa, "PAIRS", 300)
    np.testing.assert_array_equal(match(history, 1, 60, 40), wanted)


def test_what_lies_beyond_the_newest_symbol_does_not_matter(rng):
    streams = draw("followed", 3, 8, 100, 1, rng)
    history = packed(streams, 1)
    np.testing.assert_array_equal(match(history, 1, 40, 20), answers(streams[:, :, :60])[40:])


@pytest.mark.parametrize("bits", [1, 4])
def test_channels_above_zero_are_set_bits_the_lowest_channel_the_lowest_bit(rng, bits):
    x = rng.standard_normal((45, 3, 4, bits)).astype(np.float32)
    x[::3] = 0.0
    x[0, 0, 0, 0] = np.nan
    history = np.full((3, 4, words(45, bits) + 1), 0xFFFFFFFF, np.uint32)
    pack(history, x, bits, 0)
    symbols = unpack(history, bits, 45)
    for channel in range(bits):
        plane = symbols >> np.uint32(channel) & 1
        np.testing.assert_array_equal(plane, np.moveaxis(x[..., channel] > 0, 0, 2))
    assert not (history[:, :, -2] >> np.uint32(45 * bits % 32)).any()
    assert (history[:, :, -1] == 0xFFFFFFFF).all()


def test_no_token_packs_and_matches_nothing():
    history = np.full((1, 2, 1), 7, np.uint32)
    pack(history, np.zeros((0, 1, 2, 1), np.float32), 1, 32)
    assert (history == 7).all()
    assert match(history, 1, 3, 0).shape == (0, 2)


def test_values_are_of_set_bits_of_clear_bits_and_of_no_match():
    values = (np.arange(4) + np.array([[0], [10], [20]])).astype(np.float32)[:, None]
    found = read(np.array([[5], [NO_MATCH], [15]], np.uint32), values, 4)
    assert found[:, 0].tolist() == [[0, 11, 2, 13], [20, 21, 22, 23], [0, 1, 2, 3]]
    assert found.dtype == np.float32


def test_sizes_of_histories_round_up_to_whole_words():
    assert [words(n, 1) for n in (1, 31, 32, 33)] == [1, 1, 1, 2]
    assert [words(n, 4) for n in (8, 9)] == [1, 2]
    assert words(5, 32) == 5
    with pytest.raises(PlanError, match="symbols of 2 bits"):
        symbols_per_word(2)
