"""An entry of a manifest: one tuned kernel for one problem, as text, as plain data, and checked.

Entries are most of a manifest, and reading them is most of opening a bundle. So a text that is laid
out as the writer does it, as all are that it wrote, is matched as a whole by one expression, which
says of every value what a step through JSON says after it. Any other text takes that step: it may
still be right, and else there must be words for what is wrong with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from kernelforge_runtime.abi.problem import MAX_DIMENSION, Problem
from kernelforge_runtime.abi.signature import Layouts, Signature
from kernelforge_runtime.bundle.signature import (
    MAX_DIMS,
    check_layouts,
    problem_from_json,
    signature_from_json,
    signature_from_lines,
)
from kernelforge_runtime.bundle.strict_json import (
    check_lines,
    count,
    decode,
    matching,
    real,
    record,
    sha256_hex,
    show,
)
from kernelforge_runtime.errors import BundleError

FAMILY = re.compile(r"[a-z0-9_]+")
VARIANT = re.compile(r"[A-Za-z0-9_.=/-]+")

_SIGNATURE_START = b'\n      "signature": {\n'
_SIGNATURE_END = b"\n      }"
_NO_SIGNATURE = b'\n      "signature": null'

# Parts of what an entry looks like as it is written. Numbers have no more digits than any reader of
# JSON keeps; the few that are longer are read the other way.
_COUNT: Final = "(0|[1-9][0-9]{0,14})"
_REAL: Final = r"((?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,25})?(?:e[+-][0-9]{1,2})?)"
_HASH: Final = '"([0-9a-f]{64})"'
_NAME: Final = '"([a-z0-9_]{1,64})"'
_DIM: Final = r'        "[A-Z]": [1-9][0-9]{0,9}'
_BEFORE_SIGNATURE = re.compile(
    "    {\n"
    '(      "beaten": true,\n)?'
    f'      "default_ns": {_COUNT},\n'
    f'      "family": {_NAME},\n'
    f'      "glsl_sha256": {_HASH},\n'
    f'      "median_ns": {_COUNT},\n'
    f'      "module": {_HASH},\n'
    f'      "precision": {_NAME},\n'
    f'      "problem": {{\n((?:{_DIM},\n){{0,{MAX_DIMS - 1}}}{_DIM})\n'
    "      },"
)
_BEHIND_SIGNATURE = re.compile(
    ",\n"
    f'      "spread_ns": {_COUNT},\n'
    f'      "template_sha256": {_HASH},\n'
    f'      "trials": {_COUNT},\n'
    '      "variant": "([A-Za-z0-9_.=/-]{1,512})",\n'
    '      "verified": {\n'
    f'        "max_abs_error": {_REAL},\n'
    f'        "seed": {_COUNT},\n'
    f'        "tolerance": {_REAL}\n'
    "      }\n"
    "    }"
)
_DIMS = re.compile('"([A-Z])": ([0-9]+)')


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
        verified = record(data["verified"], ("max_abs_error", "seed", "tolerance"))
        entry = cls(
            family=matching(data["family"], "family", FAMILY),
            precision=matching(data["precision"], "precision", FAMILY),
            problem=problem_from_json(data["problem"]),
            variant=matching(data["variant"], "variant", VARIANT, 512),
            signature=known or signature_from_json(data["signature"]),
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
        entry.check()
        return entry

    def check(self) -> None:
        """Whether its parts, each of them sane, go together.

        Raises:
            BundleError: they do not.
        """
        variant, stem = self.variant, f"{self.family}/{self.precision}"
        if variant != stem and not variant.startswith(stem + "/"):
            raise BundleError(f"variant: expected a name that starts with {stem}, found {variant}")
        if ".." in variant:
            raise BundleError(f"variant: two dots in a row in {variant}")
        if not self.signature.serves(self.problem):
            raise BundleError(f"{self.signature.limits}, but its problem is {self.problem}")
        check_layouts(self.signature, self.problem)


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


def read_entry(text: bytes, signatures: dict[bytes, Signature]) -> Entry:
    """An entry of a manifest.

    Args:
        text: from its brace to its other one, with their indent.
        signatures: by their text, those that were read before, to which its own is added: half of
            an entry's text, and most problems of a variant have the same one.

    Raises:
        BundleError: something in it is not allowed, or not laid out as it must be.
    """
    start = text.find(_SIGNATURE_START)
    end = text.find(_SIGNATURE_END, start + 1)
    if not 0 < start < end:
        check_lines(text, unindented=1)
        return Entry.from_json(decode(text))
    end += len(_SIGNATURE_END)
    found = _as_written(text, start, end, signatures)
    return found or _as_json(text, start, end, signatures)


def _as_written(
    text: bytes, start: int, end: int, signatures: dict[bytes, Signature]
) -> Entry | None:
    """An entry that is laid out as the writer does it; None where it is not, or not sane."""
    plain = text.decode("latin-1")
    before = _BEFORE_SIGNATURE.fullmatch(plain, 0, start)
    behind = _BEHIND_SIGNATURE.fullmatch(plain, end)
    if before is None or behind is None:
        return None
    beaten, default_ns, family, glsl, median_ns, module, precision, dims = before.groups()
    spread_ns, template, trials, variant, max_abs_error, seed, tolerance = behind.groups()
    problem = _problem(dims)
    if problem is None:
        return None
    entry = Entry(
        family=family,
        precision=precision,
        problem=problem,
        variant=variant,
        signature=_signature(text[start:end], signatures),
        module_sha256=module,
        template_sha256=template,
        glsl_sha256=glsl,
        median_ns=int(median_ns),
        spread_ns=int(spread_ns),
        trials=int(trials),
        default_ns=int(default_ns),
        verified=Verified(int(seed), float(max_abs_error), float(tolerance)),
        beaten=beaten is not None,
    )
    entry.check()
    return entry


@lru_cache(maxsize=1024)
def _problem(lines: str) -> Problem | None:
    """The problem in lines of dimensions, which many kernels are for; None if it is not sane."""
    pairs = _DIMS.findall(lines)
    sizes = {name: int(size) for name, size in pairs}
    if len(sizes) != len(pairs) or max(sizes.values()) > MAX_DIMENSION:
        return None
    return Problem(**sizes)


def _as_json(text: bytes, start: int, end: int, signatures: dict[bytes, Signature]) -> Entry:
    """Any entry that has one value per line."""
    rest = text[:start] + _NO_SIGNATURE + text[end:]
    check_lines(rest, unindented=1)
    data = decode(rest)
    if isinstance(data, dict) and data.get("signature", 0) is None:  # else it lay deeper
        return Entry.from_json(data, _signature(text[start:end], signatures))
    check_lines(text, unindented=1)
    return Entry.from_json(decode(text))


def _signature(text: bytes, signatures: dict[bytes, Signature]) -> Signature:
    """The signature in the lines of an entry that hold it."""
    known = signatures.get(text)
    if known is None:
        known = signatures[text] = signature_from_lines(text)
    return known
