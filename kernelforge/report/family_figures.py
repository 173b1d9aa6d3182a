"""Pictures of searches, of a token's time, of batches and of formats; placed as in `figures`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kernelforge.report.cells import NONE, number, percent
from kernelforge.report.families import FamilyRow
from kernelforge.report.figures import Bar, BarChart, BarRow, History, history
from kernelforge.report.formats import FormatRow
from kernelforge.report.operations import REST, TokenTime
from kernelforge.report.parameters import SHOWN
from kernelforge.report.serving import ServingRow

_LONGEST = 80.0
_STEPS = (1.1, 1.3, 1.6, 2.2, 4.0)
"""Times the best, up to which a cell of a heat map has a colour; the last colour is for more."""


@dataclass(frozen=True)
class HeatCell:
    """One cell: its text, and the step of its colour, empty where nothing was tried."""

    text: str
    step: str
    count: int


@dataclass(frozen=True)
class HeatFigure:
    """Two parameters as a table of colours."""

    first: str
    second: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


@dataclass(frozen=True)
class FamilyFigures:
    """All pictures of a family and precision.

    Attributes:
        anchor: a name that is unique in the page.
        summary: one line on what tuning gained.
    """

    row: FamilyRow
    anchor: str
    summary: str
    importance: BarChart | None
    heat: HeatFigure | None
    histories: tuple[History, ...]


def family_figures(rows: Sequence[FamilyRow]) -> list[FamilyFigures]:
    """Of every family that a search or a picture is known of."""
    found = []
    for row in rows:
        histories = tuple(history(k) for k in row.kernels if len(k.history) > 1)
        figures = FamilyFigures(
            row,
            f"family-{row.family}-{row.precision}",
            _summary(row),
            _importance(row),
            _heat(row),
            histories,
        )
        if histories or figures.importance:
            found.append(figures)
    return found


def token_charts(times: Sequence[TokenTime], slug: str) -> list[BarChart]:
    """A bar per operation of a token, longest first, and one for the rest."""
    return [_token(time, slug) for time in times]


def batch_charts(rows: Sequence[ServingRow], slug: str) -> list[BarChart]:
    """Per model, weights and bundle: tokens per second of so many sequences at once."""
    groups: dict[tuple[str, str, str], list[ServingRow]] = {}
    for row in rows:
        if row.is_batch:
            groups.setdefault((row.model, row.weights, row.bundle), []).append(row)
    charts = []
    for (model, weights, bundle), group in groups.items():
        most = max(row.median for row in group)
        kind = "default" if bundle == "generic" else "tuned"
        bars = tuple(
            BarRow(
                row.test,
                "",
                f"{number(row.times_one)}× one" if math.isfinite(row.times_one) else "",
                (Bar(f"{72.0 * row.median / most:.2f}", number(row.median), kind),),
            )
            for row in sorted(group, key=lambda row: (row.sequences, row.test))
        )
        kernels = "" if bundle == slug else f", {bundle} kernels"
        title = f"{model} in {weights}{kernels}: decode of several sequences, tokens per second"
        charts.append(BarChart(title, bars, ()))
    return charts


def format_charts(rows: Sequence[FormatRow]) -> list[BarChart]:
    """Per model and text: speed of each weight format, with what it takes and what it costs."""
    groups: dict[tuple[str, str], list[FormatRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.text), []).append(row)
    charts = []
    for (model, text), group in groups.items():
        most = max(row.tok_per_s for row in group)
        bars = tuple(
            BarRow(
                row.weights,
                "recommended" if row.recommended else "on the front" if row.pareto else "",
                f"{number(row.weight_bytes / 1e6, 3)} MB, {row.worse_percent:+.2f} %",
                (
                    Bar(
                        f"{72.0 * row.tok_per_s / most:.2f}",
                        number(row.tok_per_s, 1),
                        "tuned" if row.pareto else "default",
                    ),
                ),
            )
            for row in group
        )
        title = f"{model} on {text}: tokens per second, weights, change of perplexity"
        charts.append(BarChart(title, bars, ()))
    return charts


def _summary(row: FamilyRow) -> str:
    fast = [k.speedup for k in row.kernels if math.isfinite(k.speedup)]
    trials = sum(k.trials for k in row.kernels)
    failed = sum(k.failed for k in row.kernels)
    text = f"{len(row.kernels)} {'problem' if len(row.kernels) == 1 else 'problems'}"
    text += f", {trials} trials" + (f", {failed} of them without a time" if failed else "")
    if fast:
        low, high = number(min(fast)), number(max(fast))
        text += f"; {low}×" + (f" to {high}×" if high != low else "") + " the default's speed"
    return text + "."


def _importance(row: FamilyRow) -> BarChart | None:
    if not row.importance:
        return None
    most = max(share for _, share in row.importance)
    bars = tuple(
        BarRow(
            name,
            "",
            "",
            (Bar(f"{_LONGEST * share / max(most, 1e-9):.2f}", f"{percent(share)} %", "tuned"),),
        )
        for name, share in row.importance[:SHOWN]
    )
    return BarChart(f"{row.name}: which parameters decide", bars, ())


def _heat(row: FamilyRow) -> HeatFigure | None:
    heat = row.heat
    if heat is None:
        return None
    rows = []
    for i, value in enumerate(heat.rows):
        cells = []
        for j in range(len(heat.columns)):
            times, count = heat.cells[i][j], heat.counts[i][j]
            step = f"h{sum(times > limit for limit in _STEPS)}" if count else ""
            cells.append(HeatCell(number(times) if count else NONE, step, count))
        rows.append((value, tuple(cells)))
    if len(rows) <= len(heat.columns):
        return HeatFigure(heat.first, heat.second, heat.columns, tuple(rows))
    # Across there is more room than down.
    turned = zip(heat.columns, zip(*(cells for _, cells in rows), strict=True), strict=True)
    return HeatFigure(heat.second, heat.first, heat.rows, tuple(turned))


def _token(time: TokenTime, slug: str) -> BarChart:
    r = time.record
    whole = time.rest_us + math.fsum(o.us for o in time.operations)
    most = max([time.rest_us, *(o.us for o in time.operations)])

    def bar(us: float, kind: str) -> tuple[Bar, ...]:
        text = f"{number(us)} µs, {percent(us / whole)} %"
        return (Bar(f"{60.0 * us / max(most, 1e-9):.2f}", text, kind),)

    bars = [
        BarRow(o.name, o.family if o.family != o.name else "", f"{o.count} of {r.dispatches}",
               bar(o.us, "default" if r.is_generic else "tuned"))
        for o in time.operations
    ]  # fmt: skip
    bars.append(BarRow(REST, "", "", bar(time.rest_us, "rest")))
    kernels = "" if r.bundle == slug else f", {r.bundle} kernels"
    title = f"{r.model} in {r.weights}{kernels}: {number(time.token_us)} µs per token"
    return BarChart(title, tuple(bars), ())
