"""A table of cells that are text already: page, markdown and CSV all print these."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass

NONE = "–"
"""In place of a number that there is not; in CSV the cell is empty."""


_MARKUP = re.compile(r"([\\`*<\[|])")
_ESCAPED = re.compile(r"\\([\\`*<\[|])")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in CSV, unit at the end.
        title: for people.
        is_number: set flush right.
    """

    name: str
    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to be shown.

    Attributes:
        name: of its CSV file.
        title: its heading.
        note: a sentence on what the columns mean.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_csv(self) -> str:
        """Comma-separated, with a heading."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow(["" if cell == NONE else cell for cell in row])
        return text.getvalue()

    def to_markdown(self) -> str:
        """A pipe table."""
        lines = [
            [column.title for column in self.columns],
            ["---:" if column.is_number else "---" for column in self.columns],
            *self.rows,
        ]
        return "\n".join(f"| {' | '.join(map(to_markdown, line))} |" for line in lines)


def to_markdown(text: str) -> str:
    """Text as markdown shows it, in one line: names are other people's and may hold markup.

    A picture's address among them would be fetched by whoever looks at the report.
    """
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def from_markdown(text: str) -> str:
    """What `to_markdown` was given."""
    return _ESCAPED.sub(r"\1", text)


def number(value: float, digits: int = 2) -> str:
    """A number with this many decimals; `NONE` where it is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def microseconds(ns: float) -> str:
    """Nanoseconds as µs."""
    return number(ns / 1e3)


def percent(share: float, digits: int = 1) -> str:
    """A share as a number of percent."""
    return number(100 * share, digits)
