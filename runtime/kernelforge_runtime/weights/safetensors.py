"""Reads and checks the header of a safetensors file; the data itself is left to the caller.

The header is scanned by a small strict reader and not by a JSON library: a hostile header is
refused at its first wrong byte instead of being built in memory first, so memory stays bounded
by the tensors that are accepted.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.entry import (
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    Bytes,
    TensorEntry,
    row_major,
)

MAX_HEADER_BYTES: Final = 16_000_000
MAX_NAME_BYTES: Final = 1024
MAX_METADATA_BYTES: Final = 65_536
"""Longest metadata text that is kept; what means anything here is a number or a word."""

_DTYPES: Final[dict[str, tuple[str, np.dtype[Any]]]] = {
    "F32": ("f32", np.dtype("<f4")),
    "F16": ("f16", np.dtype("<f2")),
    "BF16": ("bf16", np.dtype("<u2")),
    "F64": ("f64", np.dtype("<f8")),
    "I8": ("i8", np.dtype("i1")),
    "I16": ("i16", np.dtype("<i2")),
    "I32": ("i32", np.dtype("<i4")),
    "I64": ("i64", np.dtype("<i8")),
    "U8": ("u8", np.dtype("u1")),
    "U16": ("u16", np.dtype("<u2")),
    "U32": ("u32", np.dtype("<u4")),
    "U64": ("u64", np.dtype("<u8")),
    "BOOL": ("bool", np.dtype("u1")),
}
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
# Possessive, so that a hostile string costs no backtracking and no memory.
_STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NUMBER: Final = re.compile(rb"0|[1-9][0-9]{0,18}+(?![0-9])")
# What nearly all files hold, in one match each; whatever is otherwise is read piece by piece.
_PLAIN: Final = re.compile(rb'[ \t\r\n]*+"([ !#-\[\]-~]{0,%d}+)"' % MAX_NAME_BYTES)
_WHOLE: Final = rb"(?:0|[1-9][0-9]{0,18}+)"
_TENSOR: Final = re.compile(
    rb'\{"dtype":"([A-Z0-9]{1,8}+)","shape":\[((?:N(?:,N){0,7}+)?)\],"data_offsets":\[(N),(N)\]\}'
    .replace(b"N", _WHOLE)
)  # fmt: skip


def read_safetensors(
    data: Bytes, size: int, where: str
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors of a safetensors file, in file order, and its metadata but for very long texts.

    Each tensor is checked against the file's real size.

    Args:
        data: the whole file, sliceable.
        size: length of `data` in bytes.
        where: the file's name, for messages.

    Raises:
        ModelError: header missing, too long, not the format, or not describing the bytes exactly.
    """
    if size < 8:
        raise ModelError(f"{where}: only {size} bytes, a safetensors file needs 8: copy it again")
    length = int.from_bytes(data[:8], "little")
    if length > size - 8:
        raise ModelError(
            f"{where}: its safetensors header says {length} bytes but {size - 8} follow: "
            "the file is cut short or not safetensors; copy it again"
        )
    if length > MAX_HEADER_BYTES:
        raise ModelError(
            f"{where}: its safetensors header is {length} bytes, the limit is "
            f"{MAX_HEADER_BYTES}: not a model file"
        )
    scan = _HeaderScan(data[8 : 8 + length], where)
    found = scan.tensors()
    return _placed(found, 8 + length, size, where), scan.metadata


def _placed(
    found: dict[str, tuple[str, tuple[int, ...], int, int]], start: int, size: int, where: str
) -> dict[str, TensorEntry]:
    """Entries with absolute offsets, once every byte is known to belong to exactly one tensor."""
    entries: dict[str, TensorEntry] = {}
    expected = 0
    for name in sorted(found, key=lambda n: found[n][2:]):
        code, shape, begin, end = found[name]
        kind, stored = _DTYPES[code]
        elements = 1
        for dim in shape:
            elements *= dim
        if begin != expected:
            what = "overlaps the tensor before it" if begin < expected else "leaves a hole"
            raise ModelError(
                f"{where}: tensor {name!r} starts at byte {begin} where {expected} was due, "
                f"it {what}: the file is damaged"
            )
        if end - begin != elements * stored.itemsize:
            raise ModelError(
                f"{where}: tensor {name!r} of shape {list(shape)} {code} needs "
                f"{elements * stored.itemsize} bytes, its offsets give {end - begin}: damaged"
            )
        if end > size - start:
            raise ModelError(
                f"{where}: tensor {name!r} ends at byte {end} of the data but the file has "
                f"{size - start}: it is cut short; copy it again"
            )
        expected = end
        entries[name] = TensorEntry(kind, stored, shape, row_major(shape), start + begin)
    if expected != size - start:
        raise ModelError(
            f"{where}: {size - start - expected} bytes at the end belong to no tensor: damaged"
        )
    return {name: entries[name] for name in found}


class _HeaderScan:
    """One pass over the header's JSON text, accepting only what the format allows."""

    def __init__(self, text: bytes, where: str) -> None:
        self._text = text
        self._where = where
        self._at = 0
        self.metadata: dict[str, str] = {}

    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
        """Name -> dtype code, shape, begin, end (bytes from the start of the data)."""
        found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        if self._text[:1] != b"{":
            raise self._wrong("an object must come first")
        seen_metadata = False
        for name in self._members(MAX_TENSORS):
            if name == "__metadata__":
                if seen_metadata:
                    raise self._wrong("__metadata__ appears twice")
                seen_metadata = True
                self._read_metadata()
            elif name in found:
                raise self._wrong(f"tensor {name!r} appears twice")
            else:
                found[name] = self._tensor(name)
        self._skip()
        if self._at != len(self._text):
            raise self._wrong("text after the object")
        return found

    def _read_metadata(self) -> None:
        for key in self._members(MAX_TENSORS):
            if key in self.metadata:
                raise self._wrong(f"metadata {key!r} appears twice")
            begin, end = self._string_span()
            if end - begin <= MAX_METADATA_BYTES:
                self.metadata[key] = self._decoded(begin, end)

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        code: str | None = None
        shape: tuple[int, ...] | None = None
        offsets: tuple[int, ...] | None = None
        usual = _TENSOR.match(self._text, self._at)
        if usual is not None and usual[1].decode() in _DTYPES:
            self._at = usual.end()
            dims = usual[2].split(b",") if usual[2] else []
            sizes, ends = tuple(map(int, dims)), (int(usual[3]), int(usual[4]))
            return self._bounded(name, usual[1].decode(), sizes, ends)
        for field in self._members(8):
            if field == "dtype" and code is None:
                code = self._string()
                if code not in _DTYPES:
                    raise ModelError(
                        f"{self._where}: tensor {name!r} has dtype {code[:40]!r}, "
                        f"known are {' '.join(_DTYPES)}"
                    )
            elif field == "shape" and shape is None:
                shape = self._numbers(MAX_DIMS, f"shape of {name!r}")
            elif field == "data_offsets" and offsets is None:
                offsets = self._numbers(2, f"data_offsets of {name!r}")
            else:
                raise self._wrong(f"unexpected or repeated field {field!r} of tensor {name!r}")
        if code is None or shape is None or offsets is None or len(offsets) != 2:
            raise self._wrong(f"tensor {name!r} needs dtype, shape and two data_offsets")
        return self._bounded(name, code, shape, offsets)

    def _bounded(
        self, name: str, code: str, shape: tuple[int, ...], offsets: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...], int, int]:
        """The tensor, once it claims no more elements than any model has."""
        elements = 1
        for dim in shape:
            elements *= max(dim, 1)
        if elements > MAX_ELEMENTS:
            raise ModelError(
                f"{self._where}: tensor {name!r} claims shape {list(shape)}, more than "
                f"{MAX_ELEMENTS} elements: not a model file"
            )
        return code, shape, offsets[0], offsets[1]

    def _members(self, limit: int) -> Iterator[str]:
        """Keys of the object at the current place; the caller reads each value before the next."""
        self._take(b"{")
        if self._peek() == b"}":
            self._at += 1
            return
        for _ in range(limit):
            key = self._string()
            self._take(b":")
            yield key
            if self._peek() == b"}":
                self._at += 1
                return
            self._take(b",")
        raise self._wrong(f"an object with more than {limit} entries")

    def _numbers(self, limit: int, what: str) -> tuple[int, ...]:
        self._take(b"[")
        numbers: list[int] = []
        if self._peek() == b"]":
            self._at += 1
            return ()
        while True:
            self._skip()
            match = _NUMBER.match(self._text, self._at)
            if match is None:
                raise self._wrong(f"{what} holds something that is no whole number from 0 up")
            if len(numbers) == limit:
                raise self._wrong(f"{what} has more than {limit} numbers")
            numbers.append(int(match[0]))
            self._at = match.end()
            if self._peek() == b"]":
                self._at += 1
                return tuple(numbers)
            self._take(b",")

    def _string(self) -> str:
        plain = _PLAIN.match(self._text, self._at)
        if plain is not None:
            self._at = plain.end()
            return plain[1].decode("ascii")
        begin, end = self._string_span()
        if end - begin > MAX_NAME_BYTES:
            raise self._wrong(f"a name of {end - begin} bytes, the limit is {MAX_NAME_BYTES}")
        return self._decoded(begin, end)

    def _decoded(self, begin: int, end: int) -> str:
        """The text of a string's span."""
        try:
            text = json.loads(self._text[begin - 1 : end + 1].decode("utf-8"))
            text.encode("utf-8")
        except ValueError:
            raise self._wrong("a string that is not valid JSON in UTF-8") from None
        return str(text)

    def _string_span(self) -> tuple[int, int]:
        """Steps over a string; the span of its content, which is not decoded."""
        self._take(b'"')
        match = _STRING_REST.match(self._text, self._at)
        if match is None:
            raise self._wrong("a string does not end")
        self._at = match.end()
        return match.start(), match.end() - 1

    def _peek(self) -> bytes:
        self._skip()
        return self._text[self._at : self._at + 1]

    def _take(self, char: bytes) -> None:
        if self._peek() != char:
            raise self._wrong(f"expected {char.decode()}")
        self._at += 1

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"{self._where}: not a valid safetensors header, {what} (byte {self._at} of the "
            "header): the file is damaged or something else; copy it again"
        )
