"""Writes weights, rows of a matrix at a time, in the format that a device keeps them in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F16, DType, encode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.vocabulary import Weight
from kernelforge_runtime.quantize import quantize
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.stored_words import StoredWords
from kernelforge_runtime.vk import BufferSlice


def seen_as(piece: BufferSlice, rows: int, k: int, form: DType) -> NDArray[np.generic] | None:
    """Device memory as [rows, k]; None where the host cannot see it."""
    mapped = piece.buffer.mapped
    if mapped is None:
        return None
    found = mapped[piece.offset : piece.offset + form.nbytes(rows * k)].view(form.np)
    return found.reshape(rows, k)


def write(
    name: str,
    weight: Weight,
    target: NDArray[np.generic],
    form: DType,
    within: DType | None = None,
) -> None:
    """Rows of a matrix or a table in f32, f16 or bf16; see StoredMatrix.write for `within`.

    Raises:
        ModelError: they hold NaN or infinity, or do not fit the format.
    """
    if isinstance(weight, StoredMatrix):
        weight.write(target, form, within)
        return
    assert within is None
    with np.errstate(over="ignore"):
        encoded = encode(np.asarray(weight, np.float32), form)
    if form == F16 and not np.isfinite(encoded).all():
        raise ModelError(f"{name} does not fit f16 (a value is beyond 65504): use bf16 or f32")
    target[...] = encoded


def forget(weight: Weight) -> None:
    """Says that rows of a file were written and will hardly be asked for again."""
    if isinstance(weight, StoredMatrix):
        weight.forget()


def write_words(
    name: str,
    weight: Weight,
    form: DType,
    words: NDArray[np.generic],
    scales: NDArray[np.generic],
) -> None:
    """Rows of a matrix as words and scales of q8 or nf4; zeros where those are wider.

    Raises:
        ModelError: they hold NaN or infinity, or are too large for a scale.
    """
    missing = words.shape[1] * 32 // form.bits - weight.shape[1]
    if isinstance(weight, StoredWords) and weight.format == form and not missing:
        found = weight.words()
    else:
        whole = np.pad(weight, ((0, 0), (0, missing))) if missing else weight
        found = quantize(whole, form, name)
    words[...], scales[...] = found.weight, found.scale
