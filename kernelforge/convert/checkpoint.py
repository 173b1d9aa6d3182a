"""Turns a `.pth` or `.safetensors` model into `.safetensors`, rounding its weights if asked.

Names, shapes and metadata stay as they are; torch is not needed. A quantised matrix is two tensors
of the new file, see `kernelforge_runtime.weights.packed`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.dtypes import DTYPES, QUANTIZED, decode, encode
from kernelforge_runtime.model_identity import DIGEST_BYTES
from kernelforge_runtime.quantize import K_MULTIPLE, Quantized, dequantize, quantize
from kernelforge_runtime.weight_formats import FORMATS_KEY
from kernelforge_runtime.weights import Checkpoint, open_checkpoint
from kernelforge_runtime.weights.adapters import Adapter, open_model
from kernelforge_runtime.weights.model_hash import ORIGIN_KEY, OWN_KEY, model_hash
from kernelforge_runtime.weights.packed import METADATA_KEY, SCALE

FORMATS: Final = ("f32", "f16", "bf16")
_PIECE_ELEMENTS: Final = 1 << 22
_NO_HASH: Final = "0" * (2 * DIGEST_BYTES)
_METADATA: Final = {"format": "pt"}  # without it, some readers of safetensors refuse the file


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: the new file.
        tensors: how many it holds.
        nbytes: its size in bytes.
        cast: how many tensors changed their format.
        merged: how many tensors adapters changed.
    """

    path: Path
    tensors: int
    nbytes: int
    cast: int
    merged: int = 0


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    weights: str | None = None,
    matrices: Collection[str] = (),
    adapters: Iterable[Adapter | str | os.PathLike[str]] = (),
    formats: Mapping[str, str] | None = None,
) -> Converted:
    """Writes `source` as safetensors; the same source gives the same bytes.

    Memory stays at a few pieces of a tensor. The destination appears only when it is complete. The
    source's metadata is kept as far as `Checkpoint.metadata` has it.

    Args:
        source: a `.pth` or `.safetensors` file.
        destination: path of the new file, ending in `.safetensors`; may be the source itself.
        dtype: "f32", "f16" or "bf16" for every float tensor, rounded to nearest even; None keeps
            each tensor's own format.
        metadata: texts to add to the source's, or to replace there; what model files ask for is in
            `models.blocks.options`.
        weights: "q8" or "nf4" for `matrices`; None keeps a quantised source's as they are, unless
            `dtype` is given.
        matrices: names of what a model has as whole matrices; see `models.survey`.
        adapters: LoRA, PiSSA and DiSHA files to merge, in this order; see `weights.adapters`. A
            tensor is rounded from float64 to its format at once.
        formats: in place of `weights`: the format of each tensor by its name, "q8" and "nf4" of
            whole matrices. What is not named stays as it is, or becomes `dtype`.

    Raises:
        ModelError: the source is not a model file, or a damaged one.
        ConvertError: a value too large for `dtype`, or the destination cannot be written.
    """
    target = Path(destination)
    if dtype is not None and dtype not in FORMATS:
        raise ConvertError(f"convert to {dtype!r}: known formats are {' '.join(FORMATS)}")
    if target.suffix not in (".safetensors", ".st"):
        raise ConvertError(f"{target}: only safetensors is written: end the name in .safetensors")
    with open_model(source, adapters) as checkpoint:
        notes = dict(checkpoint.metadata)
        if dtype is not None or weights is not None:
            notes.pop(FORMATS_KEY, None)
        asked = formats if formats is not None else dict.fromkeys(matrices, weights)
        wanted = {n: asked.get(n) or _wanted(checkpoint, n, dtype) for n in checkpoint}
        packed = sorted({form for form in wanted.values() if DTYPES.get(form) in QUANTIZED})
        if formats is None:
            _check_packed(checkpoint, weights, packed)
        plans = [p for name in checkpoint for p in _plans(checkpoint, name, wanted[name])]
        notes.pop(METADATA_KEY, None)
        if packed:
            notes[METADATA_KEY] = ",".join(packed)
        cast = sum(form != checkpoint.dtype(name) for name, form in wanted.items())
        source_hash = model_hash(checkpoint)
        notes = {**_METADATA, **notes, **(metadata or {})}
        notes.pop(ORIGIN_KEY, None)
        notes.pop(OWN_KEY, None)
        same = not cast and source_hash.origin is None
        if not same:
            notes |= {ORIGIN_KEY: source_hash.root, OWN_KEY: _NO_HASH}
        nbytes = write_safetensors(
            target,
            plans,
            lambda name: _tensor_pieces(checkpoint, name, wanted),
            notes,
            None if same else _own_hash,
        )
        merged = len(checkpoint.changed)
    return Converted(target, len(plans), nbytes, cast, merged)


def _own_hash(path: Path) -> dict[str, str]:
    """What a written file's metadata says of itself."""
    with open_checkpoint(path) as written:
        return {OWN_KEY: str(model_hash(written))}


def _check_packed(checkpoint: Checkpoint, weights: str | None, packed: Sequence[str]) -> None:
    """Refuses one format for all matrices where there are none, or others remain."""
    if weights is not None and weights not in packed:
        raise ConvertError(
            f"{checkpoint.path}: has no matrix for {weights}: rows must be whole blocks of "
            f"{K_MULTIPLE} weights"
        )
    if weights is not None and len(packed) > 1:
        raise ConvertError(
            f"{checkpoint.path}: would hold {' and '.join(packed)} at once: convert "
            "from a file that is not quantised, or say with --quant which part is in which"
        )


def _wanted(checkpoint: Checkpoint, name: str, dtype: str | None) -> str:
    """The format of a tensor of the source in the new file, where no other is asked for."""
    stored = checkpoint.dtype(name)
    floats = stored in FORMATS or DTYPES.get(stored) in QUANTIZED
    return dtype if dtype is not None and floats else stored


def _plans(checkpoint: Checkpoint, name: str, wanted: str) -> Iterator[TensorPlan]:
    """The tensor as it will be written; of a quantised matrix its words and its scales."""
    shape, form = checkpoint.shape(name), DTYPES.get(wanted)
    if form not in QUANTIZED:
        yield TensorPlan(name, wanted, shape)
        return
    rows, k = shape
    yield TensorPlan(name, "u32", (rows, k * form.bits // 32))
    yield TensorPlan(name + SCALE, "u32", (rows, k // K_MULTIPLE))


def _tensor_pieces(
    checkpoint: Checkpoint, name: str, wanted: Mapping[str, str]
) -> Iterator[NDArray[Any]]:
    """What the new file holds under a name, in row-major order."""
    matrix = name if name in wanted else name.removesuffix(SCALE)
    form = DTYPES.get(wanted[matrix])
    if form not in QUANTIZED:
        yield from _pieces(checkpoint, matrix, wanted[matrix])
        return
    stored = checkpoint.quantized(matrix)
    if stored is not None and checkpoint.dtype(matrix) == form.name:
        yield stored.weight if matrix == name else stored.scale
        return
    for values in _values(checkpoint, matrix):
        made = quantize(values.reshape(-1, values.shape[-1]), form, matrix)
        yield made.weight if matrix == name else made.scale


def _values(checkpoint: Checkpoint, name: str) -> Iterator[NDArray[np.float32]]:
    """The tensor in float32, in pieces."""
    if name in checkpoint.changed:
        yield checkpoint.tensor(name)
        return
    packed, stored = checkpoint.quantized(name), DTYPES[checkpoint.dtype(name)]
    if packed is None:
        for piece in _blocks(checkpoint.raw(name)):
            yield decode(piece, stored)
        return
    rows, k = checkpoint.shape(name)
    step = max(1, _PIECE_ELEMENTS // k)
    for first in range(0, rows, step):
        last = first + step
        yield dequantize(Quantized(packed.weight[first:last], packed.scale[first:last]), stored)


def _pieces(checkpoint: Checkpoint, name: str, wanted: str) -> Iterator[NDArray[Any]]:
    """The tensor in row-major order as `wanted`, a few million elements at a time."""
    stored = checkpoint.dtype(name)
    if wanted == stored:
        yield from _blocks(checkpoint.raw(name))
        return
    overflowed = 0
    for values in _values(checkpoint, name):
        with np.errstate(over="ignore"):
            rounded = encode(values, DTYPES[wanted])
        finite = np.isfinite(decode(rounded, DTYPES[wanted]))
        overflowed += int(np.count_nonzero(np.isfinite(values) & ~finite))
        yield rounded
    if overflowed:
        raise ConvertError(
            f"{checkpoint.path}: {overflowed} values of tensor {name!r} are too large for "
            f"{wanted}: convert to bf16 or f32"
        )


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Pieces of an array along its outer dimensions, in row-major order."""
    if array.ndim == 0:
        array = array.reshape(1)
    if array.size <= _PIECE_ELEMENTS:
        yield array
    elif array.ndim > 1 and array[0].size > _PIECE_ELEMENTS:
        for row in array:
            yield from _blocks(row)
    else:
        step = max(1, _PIECE_ELEMENTS // max(1, array[0].size))
        for start in range(0, len(array), step):
            yield array[start : start + step]
