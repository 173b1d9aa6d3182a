"""Which of all benches count: the newest of each test, and with which one to compare it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kernelforge.report.bench_journal import BenchRecord, paired


@dataclass(frozen=True)
class ModelRow:
    """The newest result of one model, weight format, test and bundle.

    Attributes:
        other: the same test with the generic bundle, of the same run where there is one.
        ratio: how many times faster than with the generic bundle; NaN of the generic one itself.
        low: of the ratio's 95 % interval; NaN where the two were not measured in turns.
        high: see `low`.
    """

    record: BenchRecord
    other: BenchRecord | None = None
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def in_turns(self) -> bool:
        """Whether the ratio is of pairs measured in turns."""
        return math.isfinite(self.low)


def model_rows(records: Iterable[BenchRecord], model: str | None = None) -> list[ModelRow]:
    """A row per model, weights, test and bundle, the generic bundle last.

    Args:
        records: in the order of the journal.
        model: only this one, by its name.
    """
    newest: dict[tuple[str, str, str, str], BenchRecord] = {}
    for record in records:
        if model is None or record.model == model:
            newest[record.model, record.weights, record.test, record.bundle] = record
    rows = []
    for record in newest.values():
        generic = newest.get((record.model, record.weights, record.test, "generic"))
        rows.append(_compared(record, generic))
    return sorted(rows, key=_order)


def _compared(record: BenchRecord, generic: BenchRecord | None) -> ModelRow:
    if generic is None or record.is_generic:
        return ModelRow(record)
    if record.pair and record.pair == generic.pair and len(record.tok_per_s) > 1:
        found = paired(record, generic)
        return ModelRow(record, generic, found.ratio, found.low, found.high)
    return ModelRow(record, generic, record.median / generic.median)


def _order(row: ModelRow) -> tuple[object, ...]:
    record = row.record
    weights = {"f32": 0, "bf16": 1, "f16": 2}.get(record.weights, 3)
    size = int(record.test[2:]) if record.test[2:].isdigit() else 0
    return (
        record.parameters, record.model, record.decodes, size, record.test, weights,
        record.weights, record.is_generic, record.bundle,
    )  # fmt: skip
