"""Counts what conformance checked, over every process of a test run, and puts it in a table."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

Line = tuple[str, str, str, str, list[int], bool, str]
"""Family, precision, device, problem, hashes of variant names, whether these are all there are,
and why nothing was checked (empty where something was): plain types, which go between processes."""

TALLY: list[Line] = []


def checked(
    family: str, precision: str, device: str, problem: str, variants: Iterable[str], all_: bool
) -> None:
    """Notes variants that passed every check at a problem on a device."""
    hashes = [zlib.crc32(name.encode()) for name in variants]
    TALLY.append((family, precision, device, problem, hashes, all_, ""))


def skipped(family: str, precision: str, device: str, problem: str, reason: str) -> None:
    """Notes why nothing was checked."""
    TALLY.append((family, precision, device, problem, [], True, reason))


def table(lines: Sequence[Line]) -> list[str]:
    """A row for each family and precision, a row of sums, and each reason for leaving out once."""
    head = ["family", "precision", "problems", "variants", "fewest", "checks", "devices"]
    rows, sums = [head], [0, 0, 0]
    for name, precision in sorted({line[:2] for line in lines}):
        own = [line for line in lines if line[:2] == (name, precision) and line[4]]
        problems = len({line[3] for line in own})
        variants = len({variant for line in own for variant in line[4]})
        checks = sum(len(line[4]) for line in own)
        sums = [a + b for a, b in zip(sums, (problems, variants, checks), strict=True)]
        counts = [str(problems), str(variants), _fewest(own), str(checks)]
        rows.append([name, precision, *counts, ", ".join(sorted({line[2] for line in own})) or "-"])
    rows.append(["in all", "", str(sums[0]), str(sums[1]), "", str(sums[2]), ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [*text, *_left_out(lines)]


def _fewest(own: Sequence[Line]) -> str:
    """Variants of the problem and device that had fewest; marked where there are no others."""
    if not own:
        return "-"
    least = min(own, key=lambda line: (len(line[4]), not line[5]))
    return f"{len(least[4])} (all)" if least[5] else str(len(least[4]))


def _left_out(lines: Sequence[Line]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, precision, _, problem, _, _, reason in lines:
        if reason:
            reasons.setdefault(reason, []).append(f"{name} {precision} {problem}")
    return [
        f"left out {len(what)}: {reason} ({what[0]}{', ...' if len(what) > 1 else ''})"
        for reason, what in sorted(reasons.items())
    ]
