"""Finds the members of a zip archive without unpacking anything.

Python's `zipfile` builds an object per directory entry before anyone can count them; this reads
the directory entry by entry with a limit, and checks every offset against the file's real size.
Only what torch writes is needed: stored members, zip64 records, no encryption, one disk.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.entry import MAX_TENSORS, Bytes

_END: Final = struct.Struct("<4s4H2LH")
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_FULL32: Final = 0xFFFF_FFFF
_STORED: Final = 0
_DEFLATED: Final = 8


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside the archive.

    Attributes:
        method: 0 stored, 8 deflated.
        crc: CRC-32 of the unpacked content.
        packed: bytes it takes in the archive.
        size: bytes once unpacked.
        header: byte where its local header starts.
    """

    method: int
    crc: int
    packed: int
    size: int
    header: int

    @property
    def is_stored(self) -> bool:
        """Whether the content lies in the archive as it is."""
        return self.method == _STORED


class ZipDirectory:
    """The members of one archive, by name."""

    def __init__(self, data: Bytes, size: int, where: str) -> None:
        """Reads the central directory.

        Args:
            data: the whole file, sliceable.
            size: length of `data` in bytes.
            where: the file's name, for messages.

        Raises:
            ModelError: no directory (a truncated file), or one that contradicts the file.
        """
        self._data = data
        self._size = size
        self._where = where
        self.members: dict[str, Member] = {}
        start, length, count = self._locate()
        if count > MAX_TENSORS or length > size or start > size - length:
            raise self._damaged(f"its directory claims {count} entries, {length} bytes at {start}")
        at, end = start, start + length
        while at < end:
            at = self._read_entry(at, end)

    def content_start(self, name: str) -> int:
        """Byte where a member's content starts, checked to lie inside the file."""
        member = self.members[name]
        raw = self._data[member.header : member.header + _LOCAL.size]
        if len(raw) < _LOCAL.size:
            raise self._damaged(f"member {name!r} starts beyond the end")
        fields = _LOCAL.unpack(raw)
        start = int(member.header + _LOCAL.size + fields[9] + fields[10])
        if fields[0] != b"PK\x03\x04" or start + member.packed > self._size:
            raise self._damaged(f"member {name!r} does not lie inside the file")
        return start

    def read(self, name: str, limit: int) -> bytes:
        """A small member's content, unpacked and checked against its CRC.

        Args:
            name: a key of `members`.
            limit: most bytes to accept once unpacked.

        Raises:
            ModelError: more than `limit` bytes, an unknown method, or damaged content.
        """
        member = self.members[name]
        if max(member.size, member.packed) > limit:
            raise ModelError(
                f"{self._where}: member {name!r} unpacks to {member.size} bytes, the limit is "
                f"{limit}: not a torch checkpoint"
            )
        start = self.content_start(name)
        content = self._data[start : start + member.packed]
        if member.method == _DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(content, member.size + 1)
            except zlib.error:
                raise self._damaged(f"member {name!r} does not unpack") from None
        elif member.method != _STORED:
            raise self._damaged(f"member {name!r} uses packing method {member.method}")
        if len(content) != member.size or zlib.crc32(content) != member.crc:
            raise self._damaged(f"member {name!r} fails its checksum")
        return content

    def _locate(self) -> tuple[int, int, int]:
        """Start, length and number of entries of the central directory."""
        tail_start = max(0, self._size - _END.size - 0xFFFF)
        tail = self._data[tail_start : self._size]
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or at + _END.size > len(tail):
            raise ModelError(
                f"{self._where}: a zip archive without its directory, so it is cut short: "
                "copy or download it again"
            )
        fields = _END.unpack_from(tail, at)
        count, length, start = fields[4], fields[5], fields[6]
        locator = tail_start + at - _END64_LOCATOR.size
        if locator < 0 or self._data[locator : locator + 4] != b"PK\x06\x07":
            return start, length, count
        end64 = _END64_LOCATOR.unpack(self._data[locator : locator + _END64_LOCATOR.size])[2]
        raw = self._data[end64 : end64 + _END64.size] if end64 < self._size else b""
        if len(raw) < _END64.size or raw[:4] != b"PK\x06\x06":
            raise self._damaged("its zip64 record is missing")
        wide = _END64.unpack(raw)
        return wide[9], wide[8], wide[7]

    def _read_entry(self, at: int, end: int) -> int:
        raw = self._data[at : at + _ENTRY.size]
        if len(raw) < _ENTRY.size or raw[:4] != b"PK\x01\x02":
            raise self._damaged(f"no directory entry at byte {at}")
        fields = _ENTRY.unpack(raw)
        flags, method, crc = fields[3], fields[4], fields[7]
        packed, size, header = fields[8], fields[9], fields[16]
        name_bytes, extra_bytes, comment_bytes = fields[10], fields[11], fields[12]
        at += _ENTRY.size
        following = at + name_bytes + extra_bytes + comment_bytes
        if following > end:
            raise self._damaged("a directory entry runs beyond the directory")
        name = self._data[at : at + name_bytes].decode("utf-8", "backslashreplace")
        if flags & 1:
            raise ModelError(f"{self._where}: member {name!r} is encrypted: save it unencrypted")
        if _FULL32 in (packed, size, header):
            extra = self._data[at + name_bytes : at + name_bytes + extra_bytes]
            size, packed, header = self._wide(extra, size, packed, header)
        if name in self.members:
            raise self._damaged(f"two members are called {name!r}")
        if len(self.members) == MAX_TENSORS:
            raise self._damaged(f"more than {MAX_TENSORS} members")
        if packed > self._size or header > self._size:
            raise self._damaged(f"member {name!r} claims {packed} bytes at {header}")
        if size > 3 * self._size:
            raise ModelError(
                f"{self._where}: member {name!r} would unpack to {size} bytes from a file of "
                f"{self._size}: refused as a zip bomb"
            )
        if method == _STORED and size != packed:
            raise self._damaged(f"stored member {name!r} has two sizes, {packed} and {size}")
        self.members[name] = Member(method, crc, packed, size, header)
        return int(following)

    def _wide(self, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
        """The zip64 values that stand in for fields that are all ones."""
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            body = extra[at + 4 : at + 4 + length]
            at += 4 + length
            if kind != 1:
                continue
            values = [size, packed, header]
            place = 0
            for index, value in enumerate(values):
                if value == _FULL32 and place + 8 <= len(body):
                    values[index] = int.from_bytes(body[place : place + 8], "little")
                    place += 8
            return values[0], values[1], values[2]
        return size, packed, header

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._where}: damaged zip archive, {what}: copy it again")
