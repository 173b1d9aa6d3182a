"""A file's matrix gets into every format as by way of float32, without it."""

import numpy as np
import pytest

from kernelforge_runtime import stored_matrix
from kernelforge_runtime.dtypes import BF16, DTYPES, F16, F32, decode, encode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.stored_matrix import StoredMatrix, half_of_bfloat

FORMATS = (F32, F16, BF16)
AWKWARD = np.array(
    [0.0, -0.0, 1e-30, -3e-8, 5.96e-8, 6.1e-5, -6.2e-5, 1.0, -1.0, 65280.0, -65280.0, 0.333],
    np.float32,
)


def values(rows: int, columns: int) -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((rows, columns), dtype=np.float32) * 0.03
    found.reshape(-1)[: len(AWKWARD)] = AWKWARD
    return found


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_every_format_becomes_every_other_as_float32_would(stored, form, monkeypatch):
    monkeypatch.setattr(stored_matrix, "PIECE_ELEMENTS", 64)
    raw = encode(values(37, 48), stored)
    target = np.full((40, 64), 7, form.np)
    StoredMatrix(raw, stored.name, "m: w").write(target[:37, :48], form)
    expected = encode(decode(raw, stored), form)
    assert np.array_equal(target[:37, :48].view(np.uint8), expected.view(np.uint8))
    assert (target[37:] == 7).all() and (target[:, 48:] == 7).all()


def test_every_bfloat_that_fits_is_rounded_as_by_way_of_float32():
    raw = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    exact = decode(raw, BF16)
    raw = np.where(np.abs(exact) <= 65504, raw, 0).astype(np.uint16)  # NaN compares as False
    found = np.empty(raw.shape, np.float16)
    assert half_of_bfloat(raw, found)
    assert np.array_equal(found.view(np.uint16), decode(raw, BF16).astype("f2").view(np.uint16))


@pytest.mark.parametrize("columns", [1, 3, 4, 6, 48])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_halves_are_the_same_in_blocks_of_any_size_and_rows_that_lie_apart(
    columns, apart, at, monkeypatch
):
    monkeypatch.setattr(stored_matrix, "BLOCK_ELEMENTS", 50)
    rng = np.random.default_rng(columns)
    exact = rng.standard_normal(at + 37 * columns) * 10.0 ** rng.integers(-9, 3, at + 37 * columns)
    raw = encode(exact.astype(np.float32), BF16)[at:].reshape(37, columns)
    target = np.full((37, columns + 5 * apart), 7, np.float16)
    assert half_of_bfloat(raw, target[:, :columns])
    expected = decode(raw, BF16).astype(np.float16)
    assert (np.abs(expected) < 2.0**-14).sum() > 10
    assert np.array_equal(target[:, :columns].view(np.uint16), expected.view(np.uint16))
    assert (target[:, columns:] == 7).all()
    for wrong in (0x4780, 0xC780, 0x7F80, 0xFFFF):
        damaged = raw.copy()
        damaged[36, columns - 1] = wrong
        assert not half_of_bfloat(damaged, target[:, :columns])


def test_large_matrices_are_shared_among_threads_and_come_out_the_same(monkeypatch):
    monkeypatch.setattr(stored_matrix, "SHARED_ELEMENTS", 1000)
    raw = encode(values(331, 40), BF16)
    matrix = StoredMatrix(raw, "bf16", "m: w")
    assert np.array_equal(np.asarray(matrix), decode(raw, BF16))
    damaged = raw.copy()
    damaged[330, 39] = 0x7FC0
    with pytest.raises(ModelError, match="m: w holds NaN"):
        StoredMatrix(damaged, "bf16", "m: w").values()


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("stored", FORMATS, ids=str)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_damaged_weights_are_named_whatever_they_become(stored, form, wrong):
    plain = values(4, 8)
    plain[3, 7] = wrong
    matrix = StoredMatrix(encode(plain, stored), stored.name, "file.pth: head.weight")
    with pytest.raises(ModelError, match=r"^file.pth: head.weight holds NaN or infinite weights"):
        matrix.write(np.empty((4, 8), form.np), form)


@pytest.mark.parametrize("stored", ["f32", "bf16"])
def test_what_is_beyond_float16_is_told_with_the_way_out(stored):
    plain = values(4, 8)
    plain[0, 0] = -70000.0
    matrix = StoredMatrix(encode(plain, DTYPES[stored]), stored, "file.pth: head.weight")
    with pytest.raises(ModelError, match=r"^head.weight does not fit f16 .*: use bf16 or f32"):
        matrix.write(np.empty((4, 8), np.float16), F16)


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_a_transpose_is_written_as_that_of_an_array(form):
    raw = encode(values(12, 40), BF16)
    turned = StoredMatrix(raw, "bf16", "m: w").T
    assert turned.shape == (40, 12) and len(turned) == 40
    target = np.empty((30, 12), form.np)
    turned[5:35].write(target, form)
    expected = encode(np.ascontiguousarray(decode(raw, BF16).T[5:35]), form)
    assert np.array_equal(target.view(np.uint8), expected.view(np.uint8))
