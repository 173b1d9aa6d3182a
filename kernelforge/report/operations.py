"""Where the time of a decoded token goes: its operations, as a bench recorded them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kernelforge.report.bench_journal import BenchRecord, Operation
from kernelforge.report.cells import Column, Table, number, percent
from kernelforge.report.models import ModelRow

OPERATION_COLUMNS = (
    Column("model", "model", False),
    Column("weights", "weights", False),
    Column("bundle", "kernels", False),
    Column("operation", "operation", False),
    Column("family", "family", False),
    Column("dispatches", "dispatches"),
    Column("us_per_token", "µs per token"),
    Column("share_percent", "share %"),
    Column("clock", "clock", False),
)
REST = "between kernels, and the host"
_CLOCKS = {"traced": "on the device", "packed": "from tuning"}


@dataclass(frozen=True)
class TokenTime:
    """One model's token, taken apart.

    Attributes:
        record: the decode test that it belongs to.
        operations: longest first.
        token_us: time per token, untraced.
        rest_us: of it, what no operation takes; 0 where together they take more.
    """

    record: BenchRecord
    operations: tuple[Operation, ...]
    token_us: float
    rest_us: float

    @property
    def clock(self) -> str:
        """Where the operations' times are from, in words."""
        return _CLOCKS.get(self.record.operations_from, self.record.operations_from)


def token_times(rows: Sequence[ModelRow]) -> list[TokenTime]:
    """One per model, weights and bundle: of its first decode test with operations."""
    found: dict[tuple[str, str, str], TokenTime] = {}
    for row in rows:
        r = row.record
        key = r.model, r.weights, r.bundle
        if not r.operations or key in found or not r.median > 0:
            continue
        operations = tuple(sorted(r.operations, key=lambda o: (-o.us, o.name)))
        token_us = 1e6 / r.median
        rest = token_us - math.fsum(o.us for o in operations)
        found[key] = TokenTime(r, operations, token_us, max(rest, 0.0))
    return list(found.values())


def operation_table(times: Sequence[TokenTime]) -> Table:
    """A row per operation, and one for the rest of a token's time."""
    rows: list[tuple[str, ...]] = []
    for time in times:
        r = time.record
        head = (r.model, r.weights, r.bundle)
        whole = time.rest_us + math.fsum(o.us for o in time.operations)
        for o in time.operations:
            rows.append(
                (*head, o.name, o.family, str(o.count), number(o.us), percent(o.us / whole),
                 time.clock)
            )  # fmt: skip
        rows.append((*head, REST, "–", "–", number(time.rest_us), percent(time.rest_us / whole),
                     "difference"))  # fmt: skip
    return Table(
        "operations",
        "Where a token's time goes",
        OPERATION_COLUMNS,
        tuple(rows),
        "Each dispatch of a decoded token, layers added up. On the device: a timestamp after every "
        "dispatch, which keeps them from overlapping; from tuning: the kernels' own medians. The "
        "last line is what is left of the time per token that was measured without.",
    )
