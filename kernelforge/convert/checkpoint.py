"""Turns a `.pth` or `.safetensors` model into `.safetensors`, rounding its weights if asked.

Names, shapes and metadata stay as they are; torch is not needed. Block-quantised formats and merged
adapters are other modules' business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.dtypes import DTYPES, decode, encode
from kernelforge_runtime.weights import Checkpoint, open_checkpoint

FORMATS: Final = ("f32", "f16", "bf16")
_PIECE_ELEMENTS: Final = 1 << 22
_METADATA: Final = {"format": "pt"}  # without it, some readers of safetensors refuse the file


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: the new file.
        tensors: how many it holds.
        nbytes: its size in bytes.
        cast: how many tensors changed their format.
    """

    path: Path
    tensors: int
    nbytes: int
    cast: int


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
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

    Raises:
        ModelError: the source is not a model file, or a damaged one.
        ConvertError: a value too large for `dtype`, or the destination cannot be written.
    """
    target = Path(destination)
    if dtype is not None and dtype not in FORMATS:
        raise ConvertError(f"convert to {dtype!r}: known formats are {' '.join(FORMATS)}")
    if target.suffix not in (".safetensors", ".st"):
        raise ConvertError(f"{target}: only safetensors is written: end the name in .safetensors")
    with open_checkpoint(source) as checkpoint:
        plans = []
        for name in checkpoint:
            stored = checkpoint.dtype(name)
            wanted = dtype if dtype is not None and stored in FORMATS else stored
            plans.append(TensorPlan(name, wanted, checkpoint.shape(name)))
        wanted_by_name = {plan.name: plan.dtype for plan in plans}
        nbytes = write_safetensors(
            target,
            plans,
            lambda name: _pieces(checkpoint, name, wanted_by_name[name]),
            {**_METADATA, **checkpoint.metadata, **(metadata or {})},
        )
        cast = sum(plan.dtype != checkpoint.dtype(plan.name) for plan in plans)
    return Converted(target, len(plans), nbytes, cast)


def _pieces(checkpoint: Checkpoint, name: str, wanted: str) -> Iterator[NDArray[Any]]:
    """The tensor in row-major order as `wanted`, a few million elements at a time."""
    stored = checkpoint.dtype(name)
    overflowed = 0
    for piece in _blocks(checkpoint.raw(name)):
        if wanted == stored:
            yield piece
            continue
        values = decode(piece, DTYPES[stored])
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
