"""What tuning made of each family: its kernels together, and what its searches taught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from kernelforge.measure.measurement import Measurement
from kernelforge.report.cells import NONE, Column, Table, number, percent
from kernelforge.report.kernels import KernelRow
from kernelforge.report.parameters import HeatMap, good_trials, heat_map, importance
from kernelforge_runtime.errors import BundleError

FAMILY_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("problems", "problems"),
    Column("over_default", "× default"),
    Column("over_generic", "× generic"),
    Column("most", "most × default"),
    Column("spread_percent", "spread %"),
    Column("share_percent", "share %"),
    Column("trials", "trials"),
    Column("failed", "failed"),
    Column("parameter", "decides most", False),
)
IMPORTANCE_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("parameter", "parameter", False),
    Column("importance_percent", "importance %"),
    Column("trials", "trials"),
)
HEAT_COLUMNS = (
    Column("family", "family", False),
    Column("precision", "type", False),
    Column("first", "parameter", False),
    Column("first_value", "value", False),
    Column("second", "other parameter", False),
    Column("second_value", "its value", False),
    Column("times_best", "× best time"),
    Column("trials", "trials"),
)


@dataclass(frozen=True)
class FamilyRow:
    """One family in one precision.

    Attributes:
        kernels: a row per problem.
        trials: good ones, behind `importance` and `heat`.
        importance: parameters and their share in what tells fast from slow.
        heat: the two most important against each other.
    """

    family: str
    precision: str
    kernels: tuple[KernelRow, ...]
    trials: int
    importance: tuple[tuple[str, float], ...]
    heat: HeatMap | None

    @property
    def name(self) -> str:
        """`gemv f16`."""
        return f"{self.family} {self.precision}"


def family_rows(
    measurements: Sequence[Measurement], kernels: Sequence[KernelRow]
) -> list[FamilyRow]:
    """A row per family and precision that has kernels, in their order."""
    by_key: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        by_key.setdefault((m.family, m.precision), []).append(m)
    rows: dict[tuple[str, str], list[KernelRow]] = {}
    for kernel in kernels:
        rows.setdefault((kernel.family, kernel.precision), []).append(kernel)
    found = []
    for key, group in rows.items():
        trials = good_trials(by_key.get(key, []))
        shares = importance(trials)
        heat = heat_map(trials, shares)
        found.append(FamilyRow(*key, tuple(group), len(trials), shares, heat))
    return found


def generic_variants() -> dict[tuple[str, str], frozenset[str]]:
    """Names of the generic bundle's variants, by family and precision; empty without one."""
    from kernelforge_runtime.bundle import read_manifest
    from kernelforge_runtime.bundle.bundle import MANIFEST_FILE
    from kernelforge_runtime.resources import tuned_search_path

    found: dict[tuple[str, str], set[str]] = {}
    for place in tuned_search_path():
        folder = place / "generic"
        if isinstance(folder, Path) and (folder / MANIFEST_FILE).is_file():
            try:
                entries = read_manifest(folder).entries
            except BundleError:
                continue
            for entry in entries:
                found.setdefault((entry.family, entry.precision), set()).add(entry.variant)
            break
    return {key: frozenset(names) for key, names in found.items()}


def family_tables(rows: Sequence[FamilyRow]) -> list[Table]:
    """Families, importances and heat maps."""
    return [
        Table(
            "families",
            "Every family",
            FAMILY_COLUMNS,
            tuple(_family(row) for row in rows),
            "Geometric means over the problems of a family; spread and share are medians. "
            "Share is of the ceiling that bounds a kernel. The generic bundle has no kernels of a "
            "family without a number there, or none that was timed.",
        ),
        Table(
            "importance",
            "What decides",
            IMPORTANCE_COLUMNS,
            tuple(
                (row.family, row.precision, name, percent(share), str(row.trials))
                for row in rows
                for name, share in row.importance
            ),
            "Share of each parameter in what tells the best tenth of all trials from the rest "
            "(PED-ANOVA); parameters interact, and what was hardly varied cannot show.",
        ),
        Table(
            "heat",
            "Two parameters",
            HEAT_COLUMNS,
            tuple(cells for row in rows for cells in _heat(row)),
            "Median time over the best time of the same problem.",
        ),
    ]


def _family(row: FamilyRow) -> tuple[str, ...]:
    return (
        row.family,
        row.precision,
        str(len(row.kernels)),
        number(geometric_mean([k.speedup for k in row.kernels])),
        number(geometric_mean([k.over_generic for k in row.kernels])),
        number(max((k.speedup for k in row.kernels if math.isfinite(k.speedup)),
                   default=math.nan)),
        percent(_middle([k.spread_ns / k.median_ns for k in row.kernels])),
        percent(_middle([k.rate.share for k in row.kernels])),
        str(sum(k.trials for k in row.kernels)),
        str(sum(k.failed for k in row.kernels)),
        row.importance[0][0] if row.importance else NONE,
    )  # fmt: skip


def _heat(row: FamilyRow) -> list[tuple[str, ...]]:
    if row.heat is None:
        return []
    heat = row.heat
    return [
        (
            row.family,
            row.precision,
            heat.first,
            first,
            heat.second,
            second,
            number(heat.cells[i][j]),
            str(heat.counts[i][j]),
        )
        for i, first in enumerate(heat.rows)
        for j, second in enumerate(heat.columns)
        if heat.counts[i][j]
    ]


def _middle(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return median(known) if known else math.nan


def geometric_mean(values: Sequence[float]) -> float:
    """Of the finite ones; NaN of none."""
    logs = [math.log(v) for v in values if math.isfinite(v) and v > 0]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan
