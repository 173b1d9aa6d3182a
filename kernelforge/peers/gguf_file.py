"""Writes GGUF, the container of llama.cpp: typed facts, then tensors, each at a multiple of 32.

Source: the format's specification, version 3 (ggml, docs/gguf.md). Everything is little-endian;
dimensions stand innermost first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import ConvertError
from kernelforge_runtime.written_file import written_whole

MAGIC: Final = b"GGUF"
VERSION: Final = 3
ALIGNMENT: Final = 32
_UINT32, _FLOAT32, _STRING = 4, 6, 8
_DTYPES: Final = {"f32": (0, np.float32), "f16": (1, np.float16)}

Fact = int | float | str


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as it will be written.

    Attributes:
        name: its name in the file.
        dtype: f32 or f16.
        shape: dimensions, outermost first.
        read: its values in that shape; called once, when they are written.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return math.prod(self.shape) * np.dtype(_DTYPES[self.dtype][1]).itemsize


def write_gguf(path: Path, facts: Mapping[str, Fact], tensors: Sequence[GgufTensor]) -> None:
    """Writes a file; `path` appears only when it is complete.

    Args:
        path: of the file.
        facts: what the reader is told of the model; whole numbers become 32-bit ones.
        tensors: every tensor, names unique.

    Raises:
        ConvertError: the file cannot be written, or a tensor is not what it was said to be.
    """
    try:
        with written_whole(path) as file:
            head = _head(facts, tensors)
            file.write(head + _padding(len(head)))
            for tensor in tensors:
                file.write(_elements(tensor).data)
                file.write(_padding(tensor.nbytes))
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written: {error.strerror or error}") from None


def _head(facts: Mapping[str, Fact], tensors: Sequence[GgufTensor]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(facts))]
    parts += [_text(name) + _value(value) for name, value in facts.items()]
    at = 0
    for tensor in tensors:
        shape = tensor.shape[::-1]
        parts.append(_text(tensor.name))
        parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        parts.append(struct.pack("<IQ", _DTYPES[tensor.dtype][0], at))
        at += tensor.nbytes + len(_padding(tensor.nbytes))
    return b"".join(parts)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Fact) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<If", _FLOAT32, value)


def _elements(tensor: GgufTensor) -> NDArray[Any]:
    """The values in the planned format, flat, as bytes.

    Raises:
        ConvertError: another shape than was said, or values that half precision cannot hold.
    """
    values = tensor.read()
    if values.shape != tensor.shape:
        raise ConvertError(f"tensor {tensor.name!r} has shape {values.shape}, not {tensor.shape}")
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values, _DTYPES[tensor.dtype][1])
    if not np.isfinite(found).all():
        raise ConvertError(f"tensor {tensor.name!r} has values that {tensor.dtype} cannot hold")
    return found.reshape(-1).view(np.uint8)


def _padding(nbytes: int) -> bytes:
    return bytes(-nbytes % ALIGNMENT)
