"""`manifest.json`: what a bundle holds, for which device, and how well it was measured.

Written by the toolkit, read by the runtime; this module does both, so that they cannot disagree.
`tuned/README.md` is the specification. Nothing in a manifest is trusted: every count has a cap and
every text a form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.bundle.entry import FAMILY, Entry, read_entry
from kernelforge_runtime.bundle.fingerprint import Fingerprint
from kernelforge_runtime.bundle.strict_json import (
    decode,
    listed,
    matching,
    printable,
    real,
    record,
    show,
)
from kernelforge_runtime.errors import BundleError

FORMAT = "kernelforge.bundle"
VERSION = 1

MAX_MANIFEST_BYTES = 16 << 20
MAX_ENTRY_BYTES = 64 << 10
MAX_ENTRIES = 20_000
MAX_FLAGS = 32
MAX_CEILINGS = 64

_LIST_START = b'\n  "entries": [\n'
_LIST_END = b"\n  ],\n"
_EMPTY_LIST = b'\n  "entries": [],\n'
_BETWEEN = b"\n    },\n    {\n"


@dataclass(frozen=True)
class Toolchain:
    """What made the modules."""

    kernelforge: str
    glslang: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A whole manifest.

    Attributes:
        entries: ascending by their keys, each key once.
        ceilings: measured limits of the device, unit in the name (`read_bandwidth_gbps`), by name.
    """

    device: Fingerprint
    toolchain: Toolchain
    entries: tuple[Entry, ...]
    ceilings: tuple[tuple[str, float], ...] = ()

    def to_bytes(self) -> bytes:
        """The file's bytes: the same for equal manifests.

        Raises:
            BundleError: something in it that `parse` would refuse.
        """
        data = {
            "ceilings": dict(self.ceilings),
            "device": self.device.to_json(),
            "entries": [e.to_json() for e in sorted(self.entries, key=lambda e: e.key)],
            "format": FORMAT,
            "toolchain": {
                "flags": list(self.toolchain.flags),
                "glslang": self.toolchain.glslang,
                "kernelforge": self.toolchain.kernelforge,
            },
            "version": VERSION,
        }
        try:
            text = json.dumps(data, sort_keys=True, indent=2, allow_nan=False)
        except ValueError as error:
            raise BundleError(f"manifest cannot be written: {error}") from error
        result = (text + "\n").encode("ascii")
        self.parse(result)
        return result

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Reads a manifest; the last few are kept, as who looks for a bundle then opens it.

        Entries are read one by one, so that memory stays near the size of the text whatever is
        in it. That needs them laid out as `to_bytes` does, which is part of the format.

        Raises:
            BundleError: not a manifest of this version, or something in it is not allowed.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        return _parsed(data)

    @classmethod
    def _parse(cls, data: bytes) -> Manifest:
        start, end = _entry_list(data)
        frame = decode(_frame(data, start, end))
        if not isinstance(frame, dict) or frame.get("format") != FORMAT:
            raise BundleError(f'is not of the format "{FORMAT}"')
        if type(frame.get("version")) is not int or frame["version"] != VERSION:
            raise BundleError(
                f"is of version {show(frame.get('version'))}; this runtime reads {VERSION}: "
                "use a runtime that fits, or tune again"
            )
        record(frame, ("ceilings", "device", "entries", "format", "toolchain", "version"))
        listed(frame["entries"], "entries", 0)
        return cls(
            device=_within("device", Fingerprint.from_json, frame["device"]),
            toolchain=_within("toolchain", _toolchain, frame["toolchain"]),
            entries=tuple(_entries(data, start, end)),
            ceilings=_within("ceilings", _ceilings, frame["ceilings"]),
        )


@lru_cache(maxsize=4)
def _parsed(data: bytes) -> Manifest:
    return Manifest._parse(data)


def _entry_list(data: bytes) -> tuple[int, int]:
    """Where the items of the entry list start and end; (0, 0) for an empty list."""
    start = data.find(_LIST_START)
    if start < 0:
        if data.count(_EMPTY_LIST) == 1:
            return 0, 0
        raise BundleError('has no list "entries" laid out with two spaces of indent')
    start += len(_LIST_START)
    end = data.find(_LIST_END, start)
    if end < 0 or not data.startswith(b"    {\n", start) or not data.endswith(b"\n    }", 0, end):
        raise BundleError('list "entries" is not laid out with two spaces of indent')
    return start, end


def _frame(data: bytes, start: int, end: int) -> bytes:
    """The manifest with an empty entry list."""
    if end == 0:
        start = end = len(data)
    if len(data) - (end - start) > MAX_ENTRY_BYTES:
        raise BundleError(f"has more than {MAX_ENTRY_BYTES} bytes beside its entries")
    return data[:start] + data[end:]


def _entries(data: bytes, start: int, end: int) -> Iterator[Entry]:
    previous: tuple[Any, ...] | None = None
    number = 0
    signatures: dict[bytes, Signature] = {}  # most problems of a variant have the same one
    while start < end:
        stop = data.find(_BETWEEN, start, end)
        # The next item starts after the comma, at its own indent.
        stop, following = (end, end) if stop < 0 else (stop + 6, stop + 8)
        if stop - start > MAX_ENTRY_BYTES or number == MAX_ENTRIES:
            raise BundleError(
                f"entries[{number}]: at most {MAX_ENTRIES} entries of {MAX_ENTRY_BYTES} bytes "
                "are allowed"
            )
        read = partial(read_entry, signatures=signatures)
        entry = _within(f"entries[{number}]", read, data[start:stop])
        key = entry.key
        if previous is not None and key <= previous:
            raise BundleError(
                f"entries[{number}]: {entry.family} {entry.precision} {entry.problem} is out of "
                "order or there twice"
            )
        yield entry
        previous, start, number = key, following, number + 1


def _within(where: str, read: Any, data: Any) -> Any:
    try:
        return read(data)
    except BundleError as error:
        raise BundleError(f"{where}: {error}") from None


def _toolchain(data: Any) -> Toolchain:
    record(data, ("flags", "glslang", "kernelforge"))
    return Toolchain(
        kernelforge=printable(data["kernelforge"], "kernelforge", 64),
        glslang=printable(data["glslang"], "glslang"),
        flags=tuple(printable(f, "flag") for f in listed(data["flags"], "flags", MAX_FLAGS)),
    )


def _ceilings(data: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(data, dict) or len(data) > MAX_CEILINGS:
        raise BundleError(f"expected at most {MAX_CEILINGS} named numbers, found {show(data)}")
    return tuple(
        (matching(name, "name", FAMILY), real(value, name)) for name, value in sorted(data.items())
    )
