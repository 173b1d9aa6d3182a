"""A matrix is packed a few rows at a time as it would be whole, whoever sees the memory."""

from types import SimpleNamespace

import numpy as np
import pytest

from kernelforge_runtime.dtypes import BF16, F16, F32, encode
from kernelforge_runtime.ops import matrix_place
from kernelforge_runtime.ops.matrix_place import MatrixPlace, PlacedRows
from kernelforge_runtime.ops.weight_layout import packed, packed_nbytes
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.vk.pages import populate

ROWS, K = 128, 64
LAYOUTS = ("", "M/4 K/8 M%4 K%8", "M/32 K/4 M%32 K%4", "M K+32", "K M", "K/8 M K%8")


class Memory:
    """A buffer of the host's, or one that only takes uploads."""

    def __init__(self, nbytes, seen):
        self.bytes = np.full(nbytes, 7, np.uint8)
        self.mapped = self.bytes if seen else None
        self.uploads = self.expected = 0

    def upload(self, data, offset):
        self.uploads += 1
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self.bytes[offset : offset + raw.nbytes] = raw

    def expect(self, offset, nbytes):
        self.expected += nbytes


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.parametrize("form", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_packed_as_the_whole_matrix_would_be(layout, form, seen, monkeypatch):
    for name in ("CACHED_ELEMENTS", "AT_ONCE"):
        monkeypatch.setattr(matrix_place, name, 40 * K)
    layouts = (("weight", layout),) if layout else ()
    numbers = np.random.default_rng(3).standard_normal((100, K), dtype=np.float32)
    given = encode(numbers, BF16)
    parts = [
        PlacedRows(0, "a", StoredMatrix(given[:60], "bf16", "m: a")),
        PlacedRows(64, "b", StoredMatrix(given[60:, :48], "bf16", "m: b")),
    ]
    plain = np.zeros((ROWS, K), form.np)
    for part in parts:
        values = encode(np.asarray(part.weight, np.float32), form)
        plain[part.first : part.end, : values.shape[1]] = values
    expected = packed(plain, form, layouts).reshape(-1).view(np.uint8)
    nbytes = packed_nbytes(ROWS, K, form, layouts)
    memory = Memory(nbytes + 32, seen)
    piece = SimpleNamespace(buffer=memory, offset=16)
    place = MatrixPlace(piece, ROWS, K, form, layouts)
    first_is_rows = not layout.startswith("K")
    assert place.step == (32 if first_is_rows else ROWS)
    for first in range(0, ROWS, place.step):
        place.fill(parts, first, first + place.step)
    found = memory.bytes[16 : 16 + nbytes]
    gaps = np.zeros(nbytes, bool)
    if layout == "M K+32" and not seen:  # nothing is copied to what lies between rows in pieces
        gaps = np.tile(np.arange(form.nbytes(K + 32)) >= form.nbytes(K), ROWS)[:nbytes]
    np.testing.assert_array_equal(found[~gaps], expected[~gaps])
    assert (memory.bytes[:16] == 7).all() and (memory.bytes[16 + nbytes :] == 7).all()
    assert (memory.uploads > 0) == (not seen)


def test_providing_pages_changes_nothing_that_is_there():
    memory = np.arange(50_000, dtype=np.uint8)
    for start, end in ((0, 50_000), (1, 49_999), (4096, 8192), (10, 20), (5, 5)):
        populate(memory[start:end])
    assert np.array_equal(memory, np.arange(50_000, dtype=np.uint8))
