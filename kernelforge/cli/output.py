"""Results on stdout, notes on stderr: as text for people, or as one JSON document."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

RIGHT = frozenset("0123456789-")
"""A column is set flush right where every cell starts with one of these (or is empty)."""
FOLDED = 5
"""Columns of a terminal, into less of which no cell is folded."""


class Output:
    """What one verb says.

    Attributes:
        json: only a document goes to stdout.
        quiet: nothing but results and errors is said.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.json: bool = args.json
        self.quiet: bool = args.quiet

    def text(self, text: str = "") -> None:
        """A line of the result; not in JSON."""
        if not self.json:
            print(text)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table as part of the result; not in JSON."""
        if self.json:
            return
        cells = [[str(cell) for cell in row] for row in rows]
        if sys.stdout.isatty() and _has_room([list(headers), *cells]):
            _rich_table(headers, cells)
        else:
            print("\n".join(aligned([headers, *cells])))

    def document(self, value: Mapping[str, Any]) -> None:
        """The one JSON document; nothing in text."""
        if self.json:
            print(json.dumps(plain(value), indent=2, allow_nan=False))

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities become null, objects their text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [plain(v) for v in items]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value)


def aligned(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Lines with the cells below each other; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [_is_number(rows, i) for i in range(len(widths))]
    return [
        gap.join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _is_number(rows: Sequence[Sequence[str]], column: int) -> bool:
    cells = [row[column] for row in rows[1:]]
    return bool(cells) and all(not c or c[0] in RIGHT for c in cells)


def _has_room(rows: Sequence[Sequence[str]]) -> bool:
    """Whether a terminal can show a table whole when its widest cells are folded.

    In less room columns would be folded into nothing.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    least = sum(min(width, FOLDED) for width in widths) + 2 * len(widths)
    return least <= shutil.get_terminal_size().columns


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, header in enumerate(headers):
        right = _is_number([headers, *cells], i)
        table.add_column(Text(header), justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
