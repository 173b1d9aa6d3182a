"""The names of layouts: how memory is nested, as text for manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kernelforge_runtime.layout.digits import LayoutError, Place

LETTERS = "MKTBHNCL"
"""What axes are called where nothing else is said."""
MAX_NAME = 96
_NUMBER = r"[1-9][0-9]{0,6}"
_TERM = re.compile(rf"([A-Z])(?:/({_NUMBER}))?(?:%({_NUMBER}))?(?:\+({_NUMBER}))?")
_SIZE = re.compile(r"([A-Z])=([1-9][0-9]{0,9})")


def read_name(name: str, sizes: Mapping[str, int]) -> list[Place]:
    """The digits that a name says, slowest first, for axes of these sizes.

    Raises:
        LayoutError: the name has a wrong form, or does not count each axis exactly once.
    """
    letters = list(sizes)
    places, ends = [], set()
    for text in name.split(" ") if len(name) <= MAX_NAME else [""]:
        term = _TERM.fullmatch(text)
        if term is None or term[1] not in sizes or term[3] == "1":
            raise LayoutError(
                f"layout {name[:MAX_NAME]!r}: expected terms such as M, M/32, M%32 or M+1 "
                f"of {', '.join(letters)}"
            )
        divisor = int(term[2] or 1)
        extent = int(term[3] or -(-sizes[term[1]] // divisor))
        place = Place(letters.index(term[1]), divisor, extent, int(term[4] or 0))
        places.append(place)
        if not term[3]:
            ends.add(place)
    for axis, letter in enumerate(letters):
        reached, ended = 1, False
        for place in sorted((p for p in places if p.axis == axis), key=lambda p: p.divisor):
            if ended or place.divisor != reached:
                raise LayoutError(f"layout {name!r}: {letter} is not counted exactly once")
            reached, ended = reached * place.extent, place in ends
        if not ended and (reached == 1 or reached < sizes[letter]):
            raise LayoutError(f"layout {name!r}: {letter} counts to {reached} only")
    return places


def write_name(places: Sequence[Place], shape: Sequence[int], letters: str) -> str:
    """What `read_name` reads; axis i is called `letters[i]`."""
    slowest = {p.axis: p for p in sorted(places, key=lambda p: p.divisor)}
    words = []
    for place in places:
        axis, divisor, extent, gap = place
        open_ended = place is slowest[axis] and extent == -(-shape[axis] // divisor)
        words.append(
            letters[axis]
            + (f"/{divisor}" if divisor > 1 else "")
            + ("" if open_ended else f"%{extent}")
            + (f"+{gap}" if gap else "")
        )
    return " ".join(words)


def read_sizes(text: str) -> dict[str, int]:
    """Reads `M=2 K=3`; raises LayoutError where the form is another."""
    terms = text.split(" ")
    sizes = {term[1]: int(term[2]) for term in map(_SIZE.fullmatch, terms) if term is not None}
    if len(sizes) != len(terms):
        raise LayoutError(f"sizes {text[:MAX_NAME]!r}: expected text such as M=2 K=3")
    return sizes


def write_sizes(shape: Sequence[int], letters: str) -> str:
    """What `read_sizes` reads."""
    return " ".join(f"{letter}={size}" for letter, size in zip(letters, shape, strict=False))
