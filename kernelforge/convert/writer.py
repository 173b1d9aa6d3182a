"""Writes safetensors files piece by piece, so that a file is either whole or not there.

The data goes to a temporary file in the same folder, which takes the destination's name only once
it is complete and on disk. The same tensors always give the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
) -> int:
    """Writes a file; an existing one is replaced only by a complete one.

    Args:
        destination: path of the file.
        plans: every tensor, names unique; the order does not matter.
        pieces: name -> the tensor's elements in row-major order, in pieces of any size, in the
            planned format (bf16 as uint16). Called once per tensor.
        metadata: texts by name; their order does not matter.

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
    partial = target.with_name(f".kernelforge-{secrets.token_hex(6)}.part")
    try:
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise ConvertError(
                f"{destination}: needs {total / 1e6:.1f} MB but the disk has {free / 1e6:.1f} MB "
                "left: make room or choose another folder"
            )
        try:
            _write(partial, head, ordered, pieces)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
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
    path: Path,
    head: bytes,
    ordered: Sequence[TensorPlan],
    pieces: Callable[[str], Iterable[NDArray[Any]]],
) -> None:
    with path.open("xb") as file:
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
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut; not every file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)
