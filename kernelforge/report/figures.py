"""The pictures, as positions in percent: the page draws them at whatever width it has.

Text keeps its size that way, on a phone as on a wide screen. Everything here is text already, cut
to two decimals, so that the same numbers always give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernelforge.report.cells import microseconds, number, percent
from kernelforge.report.frame import Frame
from kernelforge.report.kernels import KernelRow
from kernelforge.report.models import ModelRow

_LONGEST = 86.0
"""Percent of the width that the longest bar takes; the rest is for its label."""
MOST_BARS = 40
"""Kernels that a chart shows one by one; of more it shows the families, and each on demand."""
MOST_DOTS = 2000
"""Of a search's picture; what improved on the best is always among them."""
KIND_TITLES = {
    "gemm": "matrix × matrix",
    "gemv": "matrix × vector",
    "wkv": "recurrence",
    "rest": "norms, gates, moves",
}


@dataclass(frozen=True)
class Mark:
    """A position with a text: a tick of an axis."""

    at: str
    text: str


@dataclass(frozen=True)
class Bar:
    """One bar: its end in percent, its label, and the class that gives its colour."""

    end: str
    text: str
    kind: str


@dataclass(frozen=True)
class BarRow:
    """One row of a bar chart: what it is, a remark, and one or two bars."""

    head: str
    label: str
    remark: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class BarChart:
    """A bar chart. `line` is a mark that bars are held against."""

    title: str
    rows: tuple[BarRow, ...]
    ticks: tuple[Mark, ...]
    line: Mark | None = None


@dataclass(frozen=True)
class Point:
    """One kernel in the roofline: position in percent from the left and the top."""

    x: str
    y: str
    kind: str
    title: str


@dataclass(frozen=True)
class Roofline:
    """Operations per second over operations per byte, both logarithmic.

    Attributes:
        memory: the memory ceiling: x1, y1, x2, y2.
        compute: the compute ceiling: x1, y1, x2, y2.
        middle: of the memory line: x, y, where its label stands.
        left_out: kernels without arithmetic, which have no place on it.
    """

    points: tuple[Point, ...]
    x_ticks: tuple[Mark, ...]
    y_ticks: tuple[Mark, ...]
    memory: tuple[str, ...]
    compute: tuple[str, ...]
    middle: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    left_out: int


@dataclass(frozen=True)
class History:
    """One study: a path of the best so far, and paths that are all dots."""

    label: str
    problem: str
    remark: str
    best: str
    trials: str
    failed: str
    count: int


Labelled = tuple[str, str, str, float]
"""Of one bar: what it is, more of that, a remark, and the value."""


def speedups(frame: Frame) -> BarChart | None:
    """Tuned against default: a bar per kernel on a logarithmic axis that starts at 1."""
    return _speedups(
        [
            (
                f"{row.family} {row.precision}",
                row.problem,
                f"{microseconds(row.default_ns)} → {microseconds(row.median_ns)} µs",
                row.speedup,
            )
            for row in frame.kernels
        ]
    )


def shares(frame: Frame) -> BarChart | None:
    """Share of the measured ceiling that bounds a kernel, a bar per kernel."""
    return _shares(
        [
            (
                f"{row.family} {row.precision}",
                row.problem,
                f"{number(row.rate.gbps)} GB/s, {number(row.rate.gflops)} GFLOP/s",
                row.rate.share,
            )
            for row in frame.kernels
        ],
        [row.rate.bound for row in frame.kernels],
    )


def family_speedups(frame: Frame) -> BarChart | None:
    """The same with a bar per family: the geometric mean; None where a bar per kernel will do."""
    return _speedups([_mean(*one) for one in _families(frame, lambda row: row.speedup)])


def family_shares(frame: Frame) -> BarChart | None:
    """The same with a bar per family; None where a bar per kernel will do."""
    groups = _families(frame, lambda row: row.rate.share)
    bound = {f"{row.family} {row.precision}": row.rate.bound for row in frame.kernels}
    return _shares(
        [_mean(*one, scale=100, unit=" %") for one in groups], [bound[one[0]] for one in groups]
    )


def _families(frame: Frame, value: Callable[[KernelRow], float]) -> list[tuple[str, list[float]]]:
    """Finite values by family and precision; empty where kernels are few enough to show each."""
    found: dict[str, list[float]] = {}
    for row in frame.kernels if len(frame.kernels) > MOST_BARS else ():
        if math.isfinite(value(row)) and value(row) > 0:
            found.setdefault(f"{row.family} {row.precision}", []).append(value(row))
    return list(found.items())


def _mean(name: str, values: list[float], scale: float = 1, unit: str = "×") -> Labelled:
    mean = math.exp(math.fsum(map(math.log, values)) / len(values))
    reach = f"{number(scale * min(values))} to {number(scale * max(values))}{unit}"
    if len(values) == 1:
        return name, "1 problem", "", mean
    return name, f"{len(values)} problems", reach, mean


def _speedups(given: Sequence[Labelled]) -> BarChart | None:
    rows = [row for row in given if math.isfinite(row[3])]
    if not rows:
        return None
    most = max(2.0, *(row[3] for row in rows))

    def at(value: float) -> float:
        return _LONGEST * max(math.log(value), 0.0) / math.log(most)

    bars = tuple(
        BarRow(head, label, remark, (Bar(_cut(at(value)), f"{number(value)}×", "tuned"),))
        for head, label, remark, value in rows
    )
    steps = [v for v in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128) if v <= most * 1.001]
    ticks = tuple(Mark(_cut(at(v)), f"{v:g}×") for v in _thin(steps, 6))
    return BarChart("Speedup over the default variant, logarithmic", bars, ticks)


def _shares(given: Sequence[Labelled], bounds: Sequence[str]) -> BarChart | None:
    rows = [
        (*row, bound) for row, bound in zip(given, bounds, strict=True) if math.isfinite(row[3])
    ]
    if not rows:
        return None
    most = max(1.0, *(row[3] for row in rows))
    shown = min(most, 2.0)  # what sits in a cache must not flatten the rest
    bars = tuple(
        BarRow(
            head,
            label,
            remark,
            (Bar(_cut(_LONGEST * min(share / shown, 1.05)), f"{percent(share)} %", bound),),
        )
        for head, label, remark, share, bound in rows
    )
    ticks = tuple(Mark(_cut(_LONGEST * v / shown), f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1))
    line = Mark(_cut(_LONGEST / shown), "ceiling")
    return BarChart("Share of the measured ceiling", bars, ticks, line)


def model_charts(frame: Frame) -> list[BarChart]:
    """Tokens per second per model, prefill and decode apart: tuned above generic."""
    charts = []
    for model in dict.fromkeys(row.record.model for row in frame.models):
        for decodes in (True, False):
            rows = [
                row
                for row in frame.models
                if row.record.model == model and row.record.decodes is decodes
            ]
            if rows:
                charts.append(_model_chart(model, rows, frame.slug))
    return charts


def _model_chart(model: str, rows: Sequence[ModelRow], slug: str) -> BarChart:
    most = max(row.record.median for row in rows)
    groups: dict[tuple[str, str], list[ModelRow]] = {}
    for row in rows:
        groups.setdefault((row.record.test, row.record.weights), []).append(row)
    bars = []
    for (test, weights), group in groups.items():
        ratio = next((r.ratio for r in group if math.isfinite(r.ratio)), math.nan)
        bars.append(
            BarRow(
                test,
                weights + _others(group, slug),
                f"{number(ratio)}× generic" if math.isfinite(ratio) else "",
                tuple(
                    Bar(
                        _cut(72.0 * row.record.median / most),
                        number(row.record.median),
                        "default" if row.record.is_generic else "tuned",
                    )
                    for row in group
                ),
            )
        )
    what = "decode" if rows[0].record.decodes else "prefill"
    return BarChart(f"{model}: {what}, tokens per second", tuple(bars), ())


def _others(group: Sequence[ModelRow], slug: str) -> str:
    """Bundles whose bars no colour tells apart, in the bars' order; the name can break there."""
    names = [row.record.bundle for row in group]
    odd = [name for name in names if name not in (slug, "generic")]
    return f", {' above '.join(names)}" if odd else ""


def roofline(frame: Frame) -> Roofline | None:
    """Every kernel that computes, under the ceilings that the device was measured to have."""
    c = frame.ceilings
    placed = [(row, *place) for row in frame.kernels if (place := _place(row)) is not None]
    if c is None or not placed or not (c.memory_gbps > 0 and c.fma_gflops > 0):
        return None
    ridge = c.fma_gflops / c.memory_gbps
    x_low, x_high = _decades([x for _, x, _ in placed] + [ridge / 2, ridge * 4])
    y_low, y_high = _decades([y for _, _, y in placed] + [c.fma_gflops * 1.5])

    def across(x: float) -> str:
        return _cut(100 * (math.log10(x) - x_low) / (x_high - x_low))

    def down(y: float) -> str:
        return _cut(100 - 100 * (math.log10(y) - y_low) / (y_high - y_low))

    # The memory line starts at the left edge or where it comes in from below.
    start = max(10.0**x_low, 10.0**y_low / c.memory_gbps)
    middle = math.sqrt(start * ridge)
    points = tuple(
        Point(
            across(x),
            down(y),
            _kind(row),
            f"{row.name}: {number(y)} GFLOP/s, {number(row.rate.gbps)} GB/s, "
            f"{percent(row.rate.share)} % of the {row.rate.bound} ceiling",
        )
        for row, x, y in placed
    )
    used = {point.kind for point in points}
    return Roofline(
        points=points,
        x_ticks=tuple(Mark(across(10.0**e), _power(e)) for e in range(x_low, x_high + 1)),
        y_ticks=tuple(Mark(down(10.0**e), _power(e)) for e in range(y_low, y_high + 1)),
        memory=(across(start), down(start * c.memory_gbps), across(ridge), down(c.fma_gflops)),
        compute=(across(ridge), down(c.fma_gflops), "100.00", down(c.fma_gflops)),
        middle=(across(middle), down(middle * c.memory_gbps)),
        kinds=tuple((kind, title) for kind, title in KIND_TITLES.items() if kind in used),
        left_out=len(frame.kernels) - len(placed),
    )


def history(row: KernelRow) -> History:
    """The course of one search of at least two trials."""
    finite = [v for v in row.history if math.isfinite(v)]
    low = math.log(min(finite)) if finite else 0.0
    high = math.log(max(finite)) if finite else 1.0
    last = len(row.history) - 1

    def place(trial: int, ns: float) -> tuple[str, str]:
        y = 8 + 78 * (high - math.log(ns)) / max(high - low, 1e-9)
        return _cut(2 + 96 * trial / last), _cut(y)

    best, dots, failed, line = math.inf, [], [], ""
    every = -(-len(row.history) // MOST_DOTS)  # more would only be ink
    for trial, ns in enumerate(row.history):
        if trial % every and not ns < best:
            continue
        if not math.isfinite(ns):
            failed.append(f"M{_cut(2 + 96 * trial / last)} 96h0")
            continue
        x, y = place(trial, ns)
        dots.append(f"M{x} {y}h0")
        if ns < best:
            line += f"H{x}V{y}" if line else f"M{x} {y}"
            best = ns
    if line:
        line += "H98.00"
    first = next(iter(finite), math.nan)
    return History(
        label=f"{row.family} {row.precision}",
        problem=row.problem,
        remark=f"{microseconds(first)} → {microseconds(best)} µs",
        best=line,
        trials="".join(dots),
        failed="".join(failed),
        count=len(row.history),
    )


def _place(row: KernelRow) -> tuple[float, float] | None:
    """(operations per byte, GFLOP/s); None of a kernel that computes nothing."""
    if row.cost is None or not (row.cost[0] > 0 and row.cost[1] > 0 and row.rate.gflops > 0):
        return None
    return row.cost[0] / row.cost[1], row.rate.gflops


def _kind(row: KernelRow) -> str:
    """By the family's name, so that a new one of a kind needs no entry."""
    return next((kind for kind in ("gemm", "gemv", "wkv") if kind in row.family), "rest")


def _decades(values: Sequence[float]) -> tuple[int, int]:
    logs = [math.log10(v) for v in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return low, max(high, low + 1)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if exponent > -5 else f"1e{exponent}"


def _thin(steps: Sequence[float], most: int) -> list[float]:
    """Every n-th step, the first among them."""
    return list(steps[:: -(-len(steps) // most)])


def _cut(value: float) -> str:
    return f"{value:.2f}"
