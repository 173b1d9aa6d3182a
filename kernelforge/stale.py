"""What of a bundle today's templates and declarations would make differently.

A template's hash changes with every edit; whether that reached a kernel is told by rendering its
variant anew. A declaration that changed shows in the signature, or in that the variant is none.
"""

from __future__ import annotations

from collections import Counter
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
        unknown: entries that were not rendered to know.
    """

    family: str
    entries: int = 0
    gone: int = 0
    other: int = 0
    unknown: int = 0

    def line(self) -> str:
        """What has changed, on one line."""
        parts = []
        if self.gone:
            parts.append(f"{self.gone} of {self.entries} kernels are no variants of it any more")
        if self.other:
            least = "at least " * bool(self.unknown)
            parts.append(f"{least}{self.other} of {self.entries} kernels would be other ones now")
        same = "its kernels not" if not self.unknown else "its kernels perhaps"
        return f"{self.family}: {', '.join(parts) or f'its template has changed, {same}'}"


def stale(
    entries: Iterable[Entry],
    families: Mapping[str, KernelFamily],
    templates: bool = True,
    most: int | None = None,
) -> list[Stale]:
    """The families of a bundle that have changed since it was made, by name.

    Args:
        entries: of the bundle.
        families: today's, by name.
        templates: look at templates too, which takes seconds and needs Jinja; without, at the
            declarations alone.
        most: render no more than so many kernels of an edited family; None renders them all.

    Raises:
        ModuleNotFoundError: there is no Jinja.
        RenderError: a template of today is missing or does not parse.
    """
    hashes: dict[str, str] = {}
    found: dict[str, Stale] = {}
    edited: set[str] = set()
    rendered: Counter[str] = Counter()
    known: dict[tuple[str, ...], str] = {}
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
        # One variant serves many problems.
        key = (entry.family, entry.precision, entry.variant, entry.glsl_sha256)
        state = _state(entry, family, rendered=False)
        if state == SAME and entry.family in edited:
            if key not in known and most is not None and rendered[entry.family] >= most:
                summary.unknown += 1
                continue
            rendered[entry.family] += key not in known
            state = known[key] if key in known else _state(entry, family, rendered=True)
            known[key] = state
        summary.gone += state == GONE
        summary.other += state == OTHER
    return [s for name, s in sorted(found.items()) if s.gone or s.other or name in edited]


def _state(entry: Entry, family: KernelFamily, rendered: bool) -> str:
    try:
        precision = family.precision(entry.precision)
        params = family.space.normalise(Variant.parse(entry.variant).values)
        if family.signature(precision, params) != entry.signature:
            return OTHER
        if rendered and not renders_as(family, entry.variant, entry.glsl_sha256):
            return OTHER
    except SpaceError:
        return GONE
    except RenderError:
        return OTHER
    return SAME


def is_same(entry: Entry) -> bool:
    """Whether today's declaration and template make the very kernel of an entry."""
    family = load_families().get(entry.family)
    return family is not None and _state(entry, family, rendered=True) == SAME


def renders_as(family: KernelFamily, variant: str, glsl_sha256: str) -> bool:
    """Whether today's template makes the GLSL of this hash of a variant, named `gemv/f16/...`.

    An edit for other variants leaves what was measured of this one as true as it was.

    Raises:
        SpaceError: there is no such variant any more.
        RenderError: the template is missing or wrong.
    """
    from kernelforge.render import render

    named = Variant.parse(variant)
    params = family.space.normalise(named.values)
    return render(family, family.precision(named.precision), params).sha256 == glsl_sha256


@dataclass(frozen=True)
class Age:
    """What became of a bundle since it was made.

    Attributes:
        stale: families with kernels that would be others now, a line each.
        edited: families whose template has changed, but none of those kernels that were rendered.
        advice: the command that makes the kernels anew; empty where none is stale.
    """

    stale: tuple[str, ...]
    edited: tuple[str, ...]
    advice: str

    def line(self) -> str:
        """All of it on one line; empty where nothing is stale."""
        return f"stale: {'; '.join(self.stale)}. {self.advice}" if self.stale else ""


def age(bundle: Bundle, templates: bool = True, most: int | None = None) -> Age | None:
    """How a bundle stands to today's families; None where templates cannot be read here.

    Args:
        bundle: which.
        templates: as for `stale`.
        most: as for `stale`.
    """
    try:
        found = stale(bundle.manifest.entries, load_families(), templates, most)
    except ModuleNotFoundError:
        return None
    old = tuple(s.line() for s in found if s.gone or s.other)
    edited = tuple(s.family for s in found if not s.gone and not s.other)
    device = bundle.manifest.device
    again = f"Tune it again: kernelforge tune --device {device.slug} --model FILE"
    if device.generic:
        again = "Make it again: kernelforge build --generic"
    return Age(old, edited, again if old else "")
