"""Benches of serving: batches of sequences, the first token, tokens far into a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.measure import statistics
from kernelforge.measure.journal_lines import name, read_lines, whole, within
from kernelforge.report.bench_journal import append_bench
from kernelforge.report.cells import NONE, Column, Table, number, percent

SERVING = "serving"
"""Kind of the journal's lines."""
UNITS = ("tok/s", "s")
LEAST, MOST = 1e-6, 1e12
"""Between which every sample is, in either unit."""
SERVING_COLUMNS = (
    Column("model", "model", False),
    Column("weights", "weights", False),
    Column("bundle", "kernels", False),
    Column("test", "test", False),
    Column("sequences", "sequences"),
    Column("median", "median"),
    Column("unit", "unit", False),
    Column("spread_percent", "spread %"),
    Column("repetitions", "reps"),
    Column("per_sequence", "per sequence"),
    Column("times_one", "× one"),
)


@dataclass(frozen=True)
class ServingRow:
    """One test: `tg64@8`, eight sequences at once; `first-token`; `tg@10000`.

    Attributes:
        sequences: at once.
        unit: of the samples, `tok/s` of all together or `s`.
        times_one: how many times the tok/s of a single sequence; NaN where not known.
    """

    model: str
    weights: str
    bundle: str
    test: str
    sequences: int
    unit: str
    samples: tuple[float, ...]
    times_one: float = math.nan

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    @property
    def is_batch(self) -> bool:
        """Whether it is one of several numbers of sequences."""
        return "@" in self.test and not self.test.startswith("tg@") and self.unit == "tok/s"

    @classmethod
    def from_json(cls, model: str, data: Mapping[str, Any]) -> ServingRow:
        """Reads one row of a line.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        samples = tuple(within(value, LEAST, MOST) for value in data["samples"])
        if not samples:
            raise ValueError("a test without samples")
        unit, sequences = name(data["unit"]), whole(data["batch"])
        if unit not in UNITS or not sequences:
            raise ValueError(f"{sequences} sequences in {unit[:20]!r}")
        return cls(
            model=model,
            weights=name(data["weights"]),
            bundle=name(data["bundle"]),
            test=name(data["test"]),
            sequences=sequences,
            unit=unit,
            samples=samples,
        )


def append_serving(
    path: Path, time: str, model: str, rows: Sequence[Mapping[str, Any]], device: str = ""
) -> None:
    """Adds what one run measured.

    Args:
        path: of the bench journal.
        time: when the run began, UTC, ISO 8601.
        model: stem of the file's name.
        rows: plain data: `weights`, `bundle`, `test`, `batch`, `unit`, `samples`.
        device: its slug.

    Raises:
        ReportError: the file cannot be written.
    """
    line = {"time": time, "model": model, "device": device, "rows": [*rows]}
    append_bench(path, [], limits={SERVING: line})


def serving_rows(path: Path, model: str | None = None, only: str = "") -> list[ServingRow]:
    """The newest of every test, in the order measured; damaged lines are skipped with a warning.

    Args:
        path: of the bench journal; need not exist.
        model: only this one, by its name.
        only: if given, the slug of the device.
    """

    def read(data: Mapping[str, Any]) -> list[ServingRow] | None:
        if data["kind"] != SERVING or (only and data.get("device", "") not in ("", only)):
            return None
        return [ServingRow.from_json(name(data["model"]), one) for one in data["rows"]]

    try:
        found = read_lines(path, read, f'"{SERVING}"')
    except OSError:
        return []
    newest = {
        (row.model, row.weights, row.bundle, row.test): row
        for rows in found
        for row in rows
        if model in (None, row.model)
    }
    return [_beside_one(row, newest) for row in newest.values()]


def _beside_one(
    row: ServingRow, newest: Mapping[tuple[str, str, str, str], ServingRow]
) -> ServingRow:
    if not row.is_batch:
        return row
    alone = f"{row.test.partition('@')[0]}@1"
    one = newest.get((row.model, row.weights, row.bundle, alone))
    times = row.median / one.median if one is not None else math.nan
    return ServingRow(**{**vars(row), "times_one": times})


def serving_table(rows: Sequence[ServingRow]) -> Table:
    """A row per test."""
    return Table(
        SERVING,
        "Serving",
        SERVING_COLUMNS,
        tuple(
            (
                row.model,
                row.weights,
                row.bundle,
                row.test,
                str(row.sequences),
                number(row.median, 2 if row.unit == "tok/s" else 3),
                row.unit,
                percent(statistics.spread(row.samples) / row.median)
                if len(row.samples) > 1
                else NONE,
                str(len(row.samples)),
                number(row.median / row.sequences) if row.is_batch else NONE,
                number(row.times_one),
            )
            for row in rows
        ),
        "tg64@8 decodes 64 tokens of each of 8 sequences at once, tok/s of all together; tg@10000 "
        "is decoding at that token of a text. The first token counts from the start of a process "
        "or from loading, beside reading the weight file.",
    )
