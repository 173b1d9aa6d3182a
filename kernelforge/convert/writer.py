"""Writes safetensors files piece by piece, so that a file is either whole or not there.

The data goes to a file of its own in the same folder, which takes the destination's name only once
it is complete and on disk; see `partial_file`. The same tensors always give the same bytes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.partial_file import PartialFile, remove_leftovers
from kernelforge.errors import ConvertError

_BYTES: Final = {
    "f64": 8, "i64": 8, "u64": 8,
    "f32": 4, "i32": 4, "u32": 4,
    "f16": 2, "bf16": 2, "i16": 2, "u16": 2,
    "i8": 1, "u8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlan:
    """A tensor as it will be written.

    Attributes:
        name: its name in the file.
        dtype: stored format by its short name: "f32", "bf16", "i8" ...
        shape: dimensions, outermost first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return math.prod(self.shape) * _BYTES[self.dtype]


def write_safetensors(
    destination: Path,
    plans: Sequence[TensorPlan],
    pieces: Callable[[str], Iterable[NDArray[Any]]],
    metadata: Mapping[str, str] | None = None,
    known_later: Callable[[Path], Mapping[str, str]] | None = None,
) -> int:
    """Writes a file; an existing one is replaced only by a complete one.

    Args:
        destination: path of the file.
        plans: every tensor, names unique; the order does not matter.
        pieces: name -> the tensor's elements in row-major order, in pieces of any size, in the
            planned format (bf16 as uint16). Called once per tensor.
        metadata: texts by name; their order does not matter.
        known_later: path of the written file, before it has its name -> texts that take the place
            of `metadata`'s of the same names and lengths.

    Returns:
        Size of the file in bytes.

    Raises:
        ConvertError: the folder or the disk does not take the file, or pieces do not add up.
    """
    ordered = sorted(plans, key=lambda plan: (-_BYTES[plan.dtype], plan.name))
    head = _header(ordered, metadata)
    total = len(head) + sum(plan.nbytes for plan in ordered)
    target = destination.resolve()
    if target.is_dir():
        raise ConvertError(f"{destination}: is a folder: name the file to write")
    try:
        remove_leftovers(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise ConvertError(
                f"{destination}: needs {total / 1e6:.1f} MB but the disk has {free / 1e6:.1f} MB "
                "left: make room or choose another folder"
            )
        with PartialFile(target) as partial:
            _write(partial.file, head, ordered, pieces)
            if known_later is not None:
                partial.file.flush()
                told = _header(ordered, {**(metadata or {}), **known_later(partial.path)})
                if len(told) != len(head):
                    raise ConvertError(f"{destination}: metadata of another length than foreseen")
                partial.file.seek(0)
                partial.file.write(told)
            partial.finish()
    except OSError as error:
        raise ConvertError(
            f"{destination}: cannot be written: {error.strerror or error}: check that the folder "
            "exists, is writable and has room"
        ) from None
    return total


def _header(ordered: Sequence[TensorPlan], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON text, padded so that the data starts at a multiple of 8."""
    fields: dict[str, Any] = {}
    if metadata:
        fields["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for plan in ordered:
        if plan.name in fields:
            raise ConvertError(f"two tensors are called {plan.name!r}: rename one")
        fields[plan.name] = {
            "dtype": plan.dtype.upper(),
            "shape": list(plan.shape),
            "data_offsets": [at, at + plan.nbytes],
        }
        at += plan.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(
    file: BinaryIO,
    head: bytes,
    ordered: Sequence[TensorPlan],
    pieces: Callable[[str], Iterable[NDArray[Any]]],
) -> None:
    file.write(head)
    for plan in ordered:
        written = 0
        for piece in pieces(plan.name):
            block = np.ascontiguousarray(piece)
            file.write(block.reshape(-1).view(np.uint8).data)
            written += block.nbytes
        if written != plan.nbytes:
            raise ConvertError(
                f"tensor {plan.name!r} gave {written} bytes, its shape needs {plan.nbytes}"
            )
