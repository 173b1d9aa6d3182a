"""Arenas: slices of large buffers that never share a byte."""

import numpy as np
import pytest

from kernelforge_runtime.plan import Arena
from kernelforge_runtime.plan.arena import ALIGNMENT

pytestmark = pytest.mark.vulkan


def spans(pieces):
    return [(id(p.buffer), p.offset, p.offset + p.nbytes) for p in pieces]


def overlap(pieces):
    taken = spans(pieces)
    return [
        (a, b)
        for i, a in enumerate(taken)
        for b in taken[:i]
        if a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
    ]


@pytest.fixture
def arena(llvmpipe):
    arena = Arena(llvmpipe, "test", block_bytes=4096)
    yield arena
    arena.close()


@pytest.mark.parametrize(
    "sizes",
    [
        (8192, 16, 16),  # a tensor larger than a block comes first, as embedding tables do
        (16, 8192, 16, 9000, 16),
        (4096, 4096, 1),
        (4000, 200, 4000, 200, 5000, 200),
        tuple(range(1, 1500, 97)),
    ],
)
def test_slices_are_aligned_large_enough_and_never_overlap(arena, sizes):
    pieces = [arena.take(size) for size in sizes]
    assert overlap(pieces) == []
    for size, piece in zip(sizes, pieces, strict=True):
        assert piece.nbytes >= size
        assert piece.offset % ALIGNMENT == 0


def test_what_is_written_to_one_slice_stays_out_of_all_others(arena, rng):
    kept = []
    for size in rng.integers(1, 6000, 40):
        piece = arena.take(int(size))
        values = rng.integers(0, 256, size, dtype=np.uint8)
        piece.upload(values)
        kept.append((piece, values))
    for piece, values in kept:
        np.testing.assert_array_equal(piece.download(np.uint8, values.shape), values)


def test_a_block_is_shared_until_it_is_full(arena, llvmpipe):
    before = llvmpipe.live_objects.get("buffer", 0)
    for _ in range(16):
        arena.take(256)
    assert llvmpipe.live_objects["buffer"] == before + 1
    arena.take(1)
    assert llvmpipe.live_objects["buffer"] == before + 2


def test_zeros_are_zeros_where_other_values_have_been(arena):
    arena.take(256).upload(np.full(64, 7.0, np.float32))
    piece = arena.take(300, zero=True)
    assert not piece.download(np.uint8, piece.nbytes).any()


def test_bytes_are_counted_and_a_closed_arena_starts_anew(arena, llvmpipe):
    before = llvmpipe.live_objects.get("buffer", 0)
    arena.take(1)
    arena.take(8192)
    assert arena.nbytes == ALIGNMENT + 8192
    arena.close()
    arena.close()
    assert arena.nbytes == 0
    assert llvmpipe.live_objects.get("buffer", 0) == before
    assert arena.take(100).buffer.handle is not None
