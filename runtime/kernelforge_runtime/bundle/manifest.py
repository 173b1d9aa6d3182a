"""`manifest.json`: what a bundle holds, for which device, and how well it was measured.

Written by the toolkit, read by the runtime; this module does both, so that they cannot disagree.
`tuned/README.md` is the specification. Nothing in a manifest is trusted: every count has a cap and
every text a form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts, Signature
from kernelforge_runtime.bundle.fingerprint import Fingerprint
from kernelforge_runtime.bundle.signature import (
    check_layouts,
    problem_from_json,
    signature_from_json,
)
from kernelforge_runtime.bundle.strict_json import (
    count,
    decode,
    listed,
    matching,
    printable,
    real,
    record,
    sha256_hex,
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

FAMILY = re.compile(r"[a-z0-9_]+")
VARIANT = re.compile(r"[A-Za-z0-9_.=/-]+")

_LIST_START = b'\n  "entries": [\n'
_LIST_END = b"\n  ],\n"
_EMPTY_LIST = b'\n  "entries": [],\n'
_BETWEEN = b"\n    },\n    {\n"
_SIGNATURE_START = b'\n      "signature": {\n'
_SIGNATURE_END = b"\n      }"
_NO_SIGNATURE = b'\n      "signature": null'


@dataclass(frozen=True)
class Toolchain:
    """What made the modules."""

    kernelforge: str
    glslang: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """The last check against the family's oracle.

    Attributes:
        seed: of the inputs.
        max_abs_error: largest absolute error over all outputs.
        tolerance: absolute error allowed where the error was worst in relation to it.
    """

    seed: int
    max_abs_error: float
    tolerance: float


@dataclass(frozen=True)
class Entry:
    """One tuned kernel for one problem. Times in ns per dispatch; 0 where not measured.

    Attributes:
        precision: as in the variant's name: `f16`, `q8`, ...
        module_sha256: names the SPIR-V in `kernels.safetensors`.
        template_sha256: of the template it was made from: tells a stale entry.
        glsl_sha256: of the rendered GLSL.
        default_ns: time of the family's default variant on the same problem.
        beaten: others do this problem in its place: kept for its figures, without its module.
    """

    family: str
    precision: str
    problem: Problem
    variant: str
    signature: Signature
    module_sha256: str
    template_sha256: str
    glsl_sha256: str
    median_ns: int
    spread_ns: int
    trials: int
    default_ns: int
    verified: Verified
    beaten: bool = False

    @property
    def key(self) -> tuple[str, str, tuple[tuple[str, int], ...], Layouts, bool]:
        """What is unique in a bundle, and the order of its entries.

        A kernel that serves some sizes only may stand beside one that serves them all.
        """
        problem = tuple(sorted(self.problem.items()))
        signature = self.signature
        return self.family, self.precision, problem, signature.layouts, signature.is_limited

    def to_json(self) -> dict[str, Any]:
        """Form kept in manifests."""
        return {
            **({"beaten": True} if self.beaten else {}),
            "default_ns": self.default_ns,
            "family": self.family,
            "glsl_sha256": self.glsl_sha256,
            "median_ns": self.median_ns,
            "module": self.module_sha256,
            "precision": self.precision,
            "problem": dict(self.problem),
            "signature": self.signature.to_json(),
            "spread_ns": self.spread_ns,
            "template_sha256": self.template_sha256,
            "trials": self.trials,
            "variant": self.variant,
            "verified": {
                "max_abs_error": self.verified.max_abs_error,
                "seed": self.verified.seed,
                "tolerance": self.verified.tolerance,
            },
        }

    @classmethod
    def from_json(cls, data: Any, known: Signature | None = None) -> Entry:
        """Reads what `to_json` wrote; a wrong form raises BundleError.

        Args:
            data: plain.
            known: its signature, where that was read before; what `data` has of it is not looked
                at.
        """
        beaten = isinstance(data, dict) and "beaten" in data
        record(data, (*_ENTRY_KEYS, "beaten") if beaten else _ENTRY_KEYS)
        if beaten and data["beaten"] is not True:
            raise BundleError(f"beaten: expected true or nothing, found {show(data['beaten'])}")
        family = matching(data["family"], "family", FAMILY)
        precision = matching(data["precision"], "precision", FAMILY)
        variant = matching(data["variant"], "variant", VARIANT, 512)
        stem = f"{family}/{precision}"
        if variant != stem and not variant.startswith(stem + "/"):
            raise BundleError(f"variant: expected a name that starts with {stem}, found {variant}")
        if ".." in variant:
            raise BundleError(f"variant: two dots in a row in {variant}")
        problem = problem_from_json(data["problem"])
        signature = known or signature_from_json(data["signature"])
        if not signature.serves(problem):
            raise BundleError(f"{signature.limits}, but its problem is {problem}")
        check_layouts(signature, problem)
        verified = record(data["verified"], ("max_abs_error", "seed", "tolerance"))
        return cls(
            family=family,
            precision=precision,
            problem=problem,
            variant=variant,
            signature=signature,
            module_sha256=sha256_hex(data["module"], "module"),
            template_sha256=sha256_hex(data["template_sha256"], "template_sha256"),
            glsl_sha256=sha256_hex(data["glsl_sha256"], "glsl_sha256"),
            median_ns=count(data["median_ns"], "median_ns"),
            spread_ns=count(data["spread_ns"], "spread_ns"),
            trials=count(data["trials"], "trials"),
            default_ns=count(data["default_ns"], "default_ns"),
            verified=Verified(
                seed=count(verified["seed"], "seed"),
                max_abs_error=real(verified["max_abs_error"], "max_abs_error"),
                tolerance=real(verified["tolerance"], "tolerance"),
            ),
            beaten=beaten,
        )


_ENTRY_KEYS = (
    "default_ns",
    "family",
    "glsl_sha256",
    "median_ns",
    "module",
    "precision",
    "problem",
    "signature",
    "spread_ns",
    "template_sha256",
    "trials",
    "variant",
    "verified",
)


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
        read = partial(_entry, signatures=signatures)
        entry = _within(f"entries[{number}]", read, data[start:stop])
        key = entry.key
        if previous is not None and key <= previous:
            raise BundleError(
                f"entries[{number}]: {entry.family} {entry.precision} {entry.problem} is out of "
                "order or there twice"
            )
        yield entry
        previous, start, number = key, following, number + 1


def _entry(text: bytes, signatures: dict[bytes, Signature]) -> Entry:
    """An entry; its signature, half of its text, is only read where it is a new one."""
    start = text.find(_SIGNATURE_START)
    end = text.find(_SIGNATURE_END, start + 1)
    if 0 < start < end:
        end += len(_SIGNATURE_END)
        inner, rest = text[start:end], text[:start] + _NO_SIGNATURE + text[end:]
        _check_lines(rest, unindented=1)
        data = decode(rest)
        if isinstance(data, dict) and data.get("signature", 0) is None:  # else it lay deeper
            known = signatures.get(inner)
            if known is None:
                _check_lines(inner)
                known = signature_from_json(decode(b"{" + inner + b"}")["signature"])
                signatures[inner] = known
            return Entry.from_json(data, known)
    _check_lines(text, unindented=1)
    return Entry.from_json(decode(text))


def _check_lines(text: bytes, unindented: int = 0) -> None:
    # One value per line, as the writer lays it out: a dense text would grow in memory much more.
    # No text of an entry may hold these characters, so that counting them is enough.
    dense = (
        text.count(b",") != text.count(b",\n")
        or text.count(b"[") != text.count(b"[\n") + text.count(b"[]")
        or text.count(b"{") != text.count(b"{\n") + text.count(b"{}")
        or text.count(b"\n      ") != text.count(b"\n") - unindented
    )
    if dense:
        raise BundleError("is not laid out with one value per line and two spaces of indent")


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
