"""Random segments: disjoint runs, slots in any order, padding and unowned tokens among them."""

import numpy as np
import pytest

from kernelforge.traits.segments import decode_segments, filled_segments, owners, random_segments

SIZES = [(1, 1), (1, 5), (2, 2), (3, 3), (3, 20), (4, 2), (8, 9)]


@pytest.mark.parametrize(("segments", "tokens"), SIZES)
def test_segments_are_disjoint_runs_of_the_tokens_with_slots_of_their_own(rng, segments, tokens):
    for _ in range(20):
        segment = random_segments(segments, tokens, rng)
        assert sorted(segment[:, 2]) == list(range(segments))
        taken = np.zeros(tokens, int)
        for index, first, count, _ in filled_segments(segment):
            taken[first : first + count] += 1
            assert first + count <= tokens
            assert (owners(segment, tokens)[first : first + count] == index).all()
        assert taken.max() == 1
        if tokens > segments:
            assert taken[-1] == 0


@pytest.mark.parametrize("segments", [3, 8])
def test_of_three_or_more_segments_one_is_padding(rng, segments):
    for _ in range(20):
        assert (random_segments(segments, 30, rng)[:, 1] == 0).sum() == 1
        one_each = decode_segments(segments, rng)
        assert (one_each[:, 1] == 0).sum() == 1
        assert one_each[:, 1].max() == 1
        assert sorted(one_each[:, 2]) == list(range(segments))
