"""Random divisions of a step's tokens into sequences: what families draw as inputs.

A segment is u32 (first token, count, slot, position): tokens first to first + count - 1 of the step
belong to one sequence, whose state is row `slot` and which had `position` tokens before. A segment
without tokens is padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_POSITION = 1000


def random_segments(segments: int, tokens: int, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Segments [B, 4] of unlike length in any order, their slots a permutation of 0 to B - 1.

    Where there is room, one of three or more is padding, and the last tokens belong to none.
    """
    owned = tokens - 1 if tokens > segments else tokens
    filled = min(owned, segments - 1 if segments >= 3 else segments)
    ends = np.sort(rng.permutation(owned)[:filled] + 1)
    ends[-1:] = owned  # so that every draw is as much work
    segment = np.zeros((segments, 4), np.uint32)
    segment[:, 2] = rng.permutation(segments)
    chosen = rng.permutation(segments)[:filled]
    segment[chosen, 0] = np.concatenate([[0], ends[:-1]])
    segment[chosen, 1] = np.diff(ends, prepend=0)
    segment[chosen, 3] = rng.integers(0, MAX_POSITION, filled)
    return segment


def decode_segments(tokens: int, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Segments [T, 4] of a step in which token t is the only one of segment t, if it has any.

    One of three or more is padding; the slots are a permutation.
    """
    segment = np.zeros((tokens, 4), np.uint32)
    segment[:, 0] = np.arange(tokens)
    segment[:, 1] = 1
    segment[:, 2] = rng.permutation(tokens)
    segment[:, 3] = rng.integers(0, MAX_POSITION, tokens)
    if tokens >= 3:
        segment[rng.integers(tokens), 1] = 0
    return segment


def owners(segment: NDArray[np.uint32], tokens: int) -> NDArray[np.uint32]:
    """The segment of each token, u32 [T]; 0 for those that belong to none."""
    owner = np.zeros(tokens, np.uint32)
    for index, first, count, _ in filled_segments(segment):
        owner[first : first + count] = index
    return owner


def filled_segments(segment: NDArray[np.uint32]) -> Iterator[tuple[int, int, int, int]]:
    """(index, first token, count, slot) of every segment that has tokens."""
    for index, (first, count, slot, _) in enumerate(segment.tolist()):
        if count:
            yield index, first, count, slot
