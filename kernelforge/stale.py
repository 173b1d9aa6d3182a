"""What of a bundle today's templates and declarations would make differently.

A template's hash changes with every edit; whether that reached a kernel is told by rendering its
variant anew. A declaration that changed shows in the signature, or in that the variant is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kernelforge.errors import RenderError, SpaceError
from kernelforge.families import load_families
from kernelforge.family import KernelFamily
from kernelforge.variant import Variant
from kernelforge_runtime.bundle import Bundle, Entry

GONE, OTHER, SAME = "gone", "other", "same"


@dataclass
class Stale:
    """The entries of one family whose template or declaration has changed since.

    Attributes:
        family: its name.
        entries: how many the bundle has of it.
        gone: entries whose variant or family there is no more.
        other: entries whose variant is another kernel now: other GLSL, or another signature.
    """

    family: str
    entries: int = 0
    gone: int = 0
    other: int = 0

    def line(self) -> str:
        """What has changed, on one line."""
        parts = []
        if self.gone:
            parts.append(f"{self.gone} of {self.entries} kernels are no variants of it any more")
        if self.other:
            parts.append(f"{self.other} of {self.entries} kernels would be other ones now")
        return f"{self.family}: {', '.join(parts) or 'its template has changed, its kernels not'}"


def stale(
    entries: Iterable[Entry], families: Mapping[str, KernelFamily], templates: bool = True
) -> list[Stale]:
    """The families of a bundle that have changed since it was made, by name.

    Args:
        entries: of the bundle.
        families: today's, by name.
        templates: look at templates too, which takes seconds and needs Jinja; without, at the
            declarations alone.

    Raises:
        ModuleNotFoundError: there is no Jinja.
        RenderError: a template of today is missing or does not parse.
    """
    hashes: dict[str, str] = {}
    found: dict[str, Stale] = {}
    edited: set[str] = set()
    for entry in entries:
        summary = found.setdefault(entry.family, Stale(entry.family))
        summary.entries += 1
        family = families.get(entry.family)
        if family is None:
            summary.gone += 1
            continue
        if templates:
            from kernelforge.render import template_sha256

            if entry.family not in hashes:
                hashes[entry.family] = template_sha256(family)
            if hashes[entry.family] != entry.template_sha256:
                edited.add(entry.family)
        state = _state(entry, family, rendered=entry.family in edited)
        summary.gone += state == GONE
        summary.other += state == OTHER
    return [s for name, s in sorted(found.items()) if s.gone or s.other or name in edited]


def _state(entry: Entry, family: KernelFamily, rendered: bool) -> str:
    try:
        precision = family.precision(entry.precision)
        params = family.space.normalise(Variant.parse(entry.variant).values)
        if family.signature(precision, params) != entry.signature:
            return OTHER
        if rendered:
            from kernelforge.render import render

            if render(family, precision, params).sha256 != entry.glsl_sha256:
                return OTHER
    except SpaceError:
        return GONE
    except RenderError:
        return OTHER
    return SAME


@dataclass(frozen=True)
class Age:
    """What became of a bundle since it was made.

    Attributes:
        stale: families with kernels that would be others now, a line each.
        edited: families whose template has changed, but none of whose kernels has.
        advice: the command that makes the kernels anew; empty where none is stale.
    """

    stale: tuple[str, ...]
    edited: tuple[str, ...]
    advice: str

    def line(self) -> str:
        """All of it on one line; empty where nothing is stale."""
        return f"stale: {'; '.join(self.stale)}. {self.advice}" if self.stale else ""


def age(bundle: Bundle, templates: bool = True) -> Age | None:
    """How a bundle stands to today's families; None where templates cannot be read here."""
    try:
        found = stale(bundle.manifest.entries, load_families(), templates)
    except ModuleNotFoundError:
        return None
    old = tuple(s.line() for s in found if s.gone or s.other)
    edited = tuple(s.family for s in found if not s.gone and not s.other)
    device = bundle.manifest.device
    again = f"Tune it again: kernelforge tune --device {device.slug} --model FILE"
    if device.generic:
        again = "Make it again: kernelforge build --generic"
    return Age(old, edited, again if old else "")
