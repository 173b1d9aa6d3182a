"""Tables that hold our numbers against others': other engines, and torch's matrix products."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kernelforge.measure.journal_lines import name, whole, within
from kernelforge.report.bench_journal import BenchRecord, paired
from kernelforge.report.kernels import KernelRow
from kernelforge_runtime.abi.problem import Problem

PRODUCTS = ("gemm", "gemm_coop")
MOST_WORDS = 400
"""Of a reason: a table is no place for a log."""


@dataclass(frozen=True)
class MatmulLimits:
    """What another library's matrix product reached on the same machine.

    Attributes:
        label: the library's version, where it ran, threads.
        size: M, N and K.
        gflops: by format; multiply and add are two.
    """

    label: str
    size: int
    gflops: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MatmulLimits:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it is something else.
        """
        gflops = {name(key): within(value, 1e-9, 1e12) for key, value in data["gflops"].items()}
        return cls(name(data["label"]), whole(data["size"]), gflops)


@dataclass(frozen=True)
class PeerRow:
    """One test of ours beside another engine's, run in turns.

    Attributes:
        ours: record of our engine.
        theirs: record of the other one.
        ratio: how many times faster ours is, the median of the pairs.
        low: of its 95 % interval.
        high: see `low`.
    """

    ours: BenchRecord
    theirs: BenchRecord
    ratio: float
    low: float
    high: float


def peer_rows(records: Sequence[BenchRecord], model: str | None = None) -> list[PeerRow]:
    """The newest of every test, weights and peer.

    Args:
        records: in the order of the journal.
        model: only this one of ours, by its name.
    """
    turns: dict[tuple[str, str], BenchRecord] = {}
    newest: dict[tuple[str, str, str, str], PeerRow] = {}
    for record in records:
        if not record.pair:
            continue
        ours = turns.setdefault((record.pair, record.test), record)
        if record.peer and not ours.peer and (model is None or ours.model == model):
            found = paired(ours, record)
            row = PeerRow(ours, record, found.ratio, found.low, found.high)
            newest[ours.model, ours.weights, ours.test, record.peer] = row
    return list(newest.values())


def left_out(data: Mapping[str, Any] | None, model: str | None = None) -> list[tuple[str, str]]:
    """Other engines that the last run could not use, each with its reason.

    Args:
        data: the journal's line; None where there is none.
        model: only if it is of this one, by its name.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is something else.
    """
    if data is None or model not in (None, data["model"]):
        return []
    return [(name(peer), name(why[:MOST_WORDS])) for peer, why in data["peers"].items()]


@dataclass(frozen=True)
class ProductRow:
    """A square product of ours.

    Attributes:
        row: the kernel.
        size: M, N and K.
        tuned: GFLOP/s.
        default: GFLOP/s of the family's default; NaN where not measured.
        limit: GFLOP/s that the other library reached in float32; NaN where not measured.
    """

    row: KernelRow
    size: int
    tuned: float
    default: float
    limit: float


def product_rows(kernels: Sequence[KernelRow], limits: MatmulLimits | None) -> list[ProductRow]:
    """Every tuned product whose M, N and K are the same."""
    found = []
    for row in kernels:
        if row.family not in PRODUCTS or row.cost is None:
            continue
        problem = Problem.parse(row.problem)
        size = problem["M"]
        if problem["K"] != size or problem["T"] != size:
            continue
        flops = row.cost[0]
        same = limits is not None and limits.size == size
        limit = limits.gflops.get("f32", math.nan) if same and limits else math.nan
        default = flops / row.default_ns if row.default_ns > 0 else math.nan
        found.append(ProductRow(row, size, flops / row.median_ns, default, limit))
    return found
