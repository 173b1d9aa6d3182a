"""`kernels.safetensors`: SPIR-V modules by their sha256, in one canonical form.

The file is a valid safetensors file, but only one byte string is accepted for given modules:
names ascending, offsets without gaps, no spare spaces. So the header needs no JSON parser, and no
bit of it can change unnoticed: the names are the hashes of the contents.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping

from kernelforge_runtime.errors import BundleError

MAX_MODULE_BYTES = 1 << 20
"""Largest SPIR-V module; real ones take 1 to 30 kB."""
MAX_MODULES = 20_000
MAX_HEADER_BYTES = 4 << 20
MAX_FILE_BYTES = 256 << 20
"""Largest `kernels.safetensors`; a file above it is not read at all."""

METADATA_KEY = "manifest_sha256"
SPIRV_MAGIC = 0x07230203
_MIN_MODULE_BYTES = 20  # the five words of a SPIR-V header

_HEAD = re.compile(rb'\{"__metadata__":\{"manifest_sha256":"([0-9a-f]{64})"\}')
_TENSOR = re.compile(
    rb',"([0-9a-f]{64})":\{"dtype":"U32","shape":\[([1-9][0-9]{0,8})\],'
    rb'"data_offsets":\[(0|[1-9][0-9]{0,9}),([1-9][0-9]{0,9})\]\}'
)
_TAIL = re.compile(rb"\} {0,7}")


def write_container(manifest_sha256: str, modules: Mapping[str, bytes]) -> bytes:
    """The file's bytes for these modules (sha256 in hex → SPIR-V)."""
    header = [f'{{"__metadata__":{{"{METADATA_KEY}":"{manifest_sha256}"}}']
    offset = 0
    for name in sorted(modules):
        end = offset + len(modules[name])
        header.append(
            f',"{name}":{{"dtype":"U32","shape":[{len(modules[name]) // 4}],'
            f'"data_offsets":[{offset},{end}]}}'
        )
        offset = end
    text = ("".join(header) + "}").encode("ascii")
    text += b" " * (-len(text) % 8)
    body = b"".join(modules[name] for name in sorted(modules))
    return struct.pack("<Q", len(text)) + text + body


def read_container(data: bytes) -> tuple[str, dict[str, memoryview]]:
    """The manifest's sha256 and the modules by theirs; every module's hash is checked.

    The views share the memory of `data`.

    Raises:
        BundleError: the file is not exactly what `write_container` writes.
    """
    start, manifest_sha256, spans = read_header(data)
    body = memoryview(data)[start:]
    end = spans[-1][2] if spans else 0
    if len(body) != end:
        raise BundleError(f"holds {len(body)} bytes of modules where its header names {end}")
    modules = {}
    for name, begin, stop in spans:
        module = body[begin:stop]
        if hashlib.sha256(module).hexdigest() != name:
            raise BundleError(f"module {name[:12]} is damaged: its sha256 does not match its name")
        if module[:4] != SPIRV_MAGIC.to_bytes(4, "little"):
            raise BundleError(f"module {name[:12]} is not little-endian SPIR-V")
        modules[name] = module
    return manifest_sha256, modules


def read_header(data: bytes) -> tuple[int, str, list[tuple[str, int, int]]]:
    """Where the body starts, the manifest's sha256, and (name, begin, end) of each module.

    Only the header need be in `data`.

    Raises:
        BundleError: the header is not in the canonical form.
    """
    if len(data) < 8:
        raise BundleError(f"is cut short: {len(data)} bytes")
    (length,) = struct.unpack_from("<Q", data)
    if length % 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise BundleError(f"names a header of {length} bytes, in a file of {len(data)}")
    end = 8 + length
    head = _HEAD.match(data, 8, end)
    if head is None:
        raise BundleError(f"header does not start with the one metadata key {METADATA_KEY}")
    position = head.end()
    spans: list[tuple[str, int, int]] = []
    previous, offset = b"", 0
    while tensor := _TENSOR.match(data, position, end):
        name, words, begin, stop = tensor[1], int(tensor[2]), int(tensor[3]), int(tensor[4])
        size = 4 * words
        if name <= previous or begin != offset or stop != begin + size:
            raise BundleError(f"module {name[:12].decode()} is out of order or overlaps another")
        if not _MIN_MODULE_BYTES <= size <= MAX_MODULE_BYTES or len(spans) == MAX_MODULES:
            raise BundleError(
                f"module {name[:12].decode()} of {size} bytes: at most {MAX_MODULES} modules of "
                f"{_MIN_MODULE_BYTES} to {MAX_MODULE_BYTES} bytes are allowed"
            )
        spans.append((name.decode(), begin, stop))
        previous, offset, position = name, stop, tensor.end()
    if _TAIL.fullmatch(data, position, end) is None:
        raise BundleError(f"header is not in the canonical form at byte {position}")
    return end, head[1].decode(), spans
