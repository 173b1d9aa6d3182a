"""A comparison as a page, as markdown and as CSV, all of the same cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kernelforge.report.cells import NONE, Column, Table, number, to_markdown
from kernelforge.report.compare.verdict import LEAST, Comparison, Row, Together
from kernelforge.report.html import render
from kernelforge.report.writing import write_files

PAGE_FILE = "compare.html"
COLUMNS = (
    Column("kind", "what", False),
    Column("name", "name", False),
    Column("first", "A"),
    Column("second", "B"),
    Column("ratio", "time B / A"),
    Column("steady", "of the kernel"),
    Column("interval", "interval", False),
    Column("verdict", "verdict", False),
    Column("change", "kernel", False),
)
NOTE = (
    "Time on B over time on A, above 1 where B is slower. Of the kernel is what remains of it "
    "where its family's default, measured in turns with it, moved as well: that was the machine. "
    "The intervals hold for all rows of a kind together with 95 %, noise between runs included: "
    "what is slower or faster has 1 outside of its own."
)
_MUCH = 0.15
"""Who cannot see less than this should measure in another way."""
_CLOSER = {
    "kernel": "measure a bundle beside the defaults again: kernelforge inspect BUNDLE --remeasure",
    "model": "measure both in turns: kernelforge bench MODEL --bundle A --compare-bundle B",
}
_PICTURED = 60
_MOST = 4.0
"""The picture ends at this ratio, and at one over it."""


@dataclass(frozen=True)
class Whisker:
    """One row of the picture: positions in percent."""

    row: Row
    at: str
    low: str
    high: str
    text: str


def write_comparison(comparison: Comparison, out: Path, command: str) -> list[Path]:
    """Writes page, markdown and CSV into a folder; gives their paths, the page's first.

    Raises:
        ReportError: a file cannot be written.
    """
    table = compare_table(comparison)
    page = render(
        "compare.html.j2",
        comparison=comparison,
        sentences=sentences(comparison),
        facts=facts(comparison),
        whiskers=_whiskers(comparison.rows),
        ticks=[(_at(v), f"{v:g}×") for v in (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)],
        table=table,
        command=command,
    )
    return write_files(
        out,
        {
            PAGE_FILE: page,
            "compare.md": _markdown(comparison, table, command),
            "compare.csv": table.to_csv(),
        },
    )


def compare_table(comparison: Comparison) -> Table:
    """A row per kernel and per test of a model."""
    rows = tuple(_cells(row) for row in comparison.rows)
    return Table("compare", "Every row", COLUMNS, rows, NOTE)


def sentences(comparison: Comparison) -> list[str]:
    """What came out, in a few words: counts, then what moved as a whole."""
    rows = comparison.rows
    found = [
        f"{len(rows)} rows in common: {len(comparison.slower)} slower beyond noise, "
        f"{len(comparison.faster)} faster."
    ]
    found += [_visible(kind, rows) for kind in dict.fromkeys(row.kind for row in rows)]
    found += [_together(t) for t in comparison.together]
    if comparison.device_moved >= 0.02:
        found.append(
            f"Between the runs the device's own ceilings moved by "
            f"{100 * math.expm1(comparison.device_moved):.0f} %: as much counts as noise."
        )
    for letter, names in (("A", comparison.only_first), ("B", comparison.only_second)):
        if names:
            found.append(f"Only in {letter}: {len(names)} ({_some(names)}).")
    return found


def facts(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Label, of A, of B: where either knows it."""
    first, second = comparison.first, comparison.second
    keys = dict.fromkeys([*first.facts, *second.facts])
    rows = [("named", first.label, second.label)]
    rows += [(k, first.facts.get(k) or NONE, second.facts.get(k) or NONE) for k in keys]
    return [row for row in rows if row[1:] != (NONE, NONE)]


def _together(together: Together) -> str:
    what = together.verdict or "no difference beyond noise"
    return (
        f"All {together.count} {together.kind}s together: {number(together.ratio, 3)}× the time "
        f"(median; {number(together.low, 3)} to {number(together.high, 3)}), {what}."
    )


def _visible(kind: str, rows: Sequence[Row]) -> str:
    """What could have been seen: that nothing is flagged does not mean that nothing moved."""
    least = max(median([row.high / row.steady for row in rows if row.kind == kind]) - 1, LEAST)
    text = f"In half of the {kind}s a slowdown of {100 * least:.0f} % would be beyond noise"
    return f"{text}; to see less, {_CLOSER[kind]}." if least > _MUCH else f"{text}."


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.kind,
        row.name,
        row.first.text,
        row.second.text,
        number(row.ratio, 3),
        number(row.steady, 3),
        f"{number(row.low, 3)} to {number(row.high, 3)}",
        row.verdict or NONE,
        "another" if row.changed else "same",
    )


def _whiskers(rows: Sequence[Row]) -> list[Whisker]:
    """What was judged, and what moved most; the table has all."""
    shown = sorted(rows, key=lambda row: (not row.verdict, -abs(math.log(row.steady))))[:_PICTURED]
    return [
        Whisker(row, _at(row.steady), _at(row.low), _at(row.high), f"{number(row.steady, 3)}×")
        for row in rows
        if row in shown
    ]


def _at(ratio: float) -> str:
    """Percent from the left; 1 stands in the middle."""
    move = math.log(min(max(ratio, 1 / _MOST), _MOST)) / math.log(_MOST)
    return f"{50 + 48 * move:.2f}"


def _markdown(comparison: Comparison, table: Table, command: str) -> str:
    lines = ["# Comparison", ""]
    lines += [f"* {to_markdown(text)}" for text in sentences(comparison)]
    if comparison.slower:
        lines += ["", "## Slower beyond noise", ""]
        lines += [
            f"* **{to_markdown(row.name)}**: {number(row.steady, 3)}× the time "
            f"({number(row.low, 3)} to {number(row.high, 3)})"
            for row in comparison.slower
        ]
    lines += ["", "## Sides", ""]
    sides = Table(
        "sides",
        "Sides",
        (Column("fact", "", False), Column("a", "A", False), Column("b", "B", False)),
        tuple(facts(comparison)),
    )
    lines += [sides.to_markdown(), "", f"## {table.title}", "", table.to_markdown(), "", NOTE]
    lines += ["", "```", command, "```", ""]
    return "\n".join(lines)
