"""Benches of serving: batches of sequences, the first token, tokens far into a text."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.measure import statistics
from kernelforge.report.bench_journal import append_bench
from kernelforge.report.cells import NONE, Column, Table, number, percent

log = logging.getLogger(__name__)

SERVING = "serving"
"""Kind of the journal's lines."""
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
        samples = tuple(float(value) for value in data["samples"])
        if not samples or not all(0 < value < math.inf for value in samples):
            raise ValueError(f"samples of {data['test']!r} are no numbers above 0")
        return cls(
            model=model,
            weights=str(data["weights"]),
            bundle=str(data["bundle"]),
            test=str(data["test"]),
            sequences=int(data["batch"]),
            unit=str(data["unit"]),
            samples=samples,
        )


def append_serving(path: Path, time: str, model: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds what one run measured.

    Args:
        path: of the bench journal.
        time: when the run began, UTC, ISO 8601.
        model: stem of the file's name.
        rows: plain data: `weights`, `bundle`, `test`, `batch`, `unit`, `samples`.

    Raises:
        ReportError: the file cannot be written.
    """
    append_bench(path, [], limits={SERVING: {"time": time, "model": model, "rows": [*rows]}})


def serving_rows(path: Path, model: str | None = None) -> list[ServingRow]:
    """The newest of every test, in the order measured; damaged lines are skipped with a warning.

    Args:
        path: of the bench journal; need not exist.
        model: only this one, by its name.
    """
    newest: dict[tuple[str, str, str, str], ServingRow] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for place, line in enumerate(lines, 1):
        if b'"serving"' not in line:
            continue
        try:
            data = json.loads(line)
            if data["kind"] != SERVING:
                continue
            for row in [ServingRow.from_json(str(data["model"]), one) for one in data["rows"]]:
                if model in (None, row.model):
                    newest[row.model, row.weights, row.bundle, row.test] = row
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s line %d is damaged and was skipped (%s)", path, place, error)
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
