"""Pictures of their own, for a README or a slide: SVG files that hold for light and dark."""

from __future__ import annotations

from dataclasses import dataclass

from kernelforge.report import figures
from kernelforge.report.cells import number
from kernelforge.report.figures import BarChart
from kernelforge.report.frame import Frame
from kernelforge.report.html import render

ROOFLINE_FILE = "roofline.svg"
MODELS_FILE = "models.svg"
PICTURES = (ROOFLINE_FILE, MODELS_FILE)

_BAR = 20
_GAP = 10
_HEAD = 44


@dataclass(frozen=True)
class Placed:
    """A bar chart and where its rows stand, in pixels from the top of the picture."""

    chart: BarChart
    top: int
    rows: tuple[tuple[int, int], ...]


def render_pictures(frame: Frame) -> dict[str, str]:
    """File name to SVG text, of the pictures that the measurements are enough for."""
    found = {}
    roof, limits = figures.roofline(frame), frame.ceilings
    if roof is not None and limits is not None:
        found[ROOFLINE_FILE] = render(
            "roofline.svg.j2",
            roof=roof,
            device=frame.name,
            memory=number(limits.memory_gbps),
            compute=number(limits.fma_gflops),
        )
    placed, height = _placed(figures.model_charts(frame))
    if placed:
        found[MODELS_FILE] = render(
            "models.svg.j2",
            charts=placed,
            height=height,
            device=frame.name,
            has_generic=any(row.record.is_generic for row in frame.models),
        )
    return found


def _placed(charts: list[BarChart]) -> tuple[list[Placed], int]:
    """Charts below each other, and the height of all."""
    placed, top = [], _HEAD
    for chart in charts:
        rows, at = [], top + _HEAD
        for row in chart.rows:
            height = _BAR * len(row.bars) + _GAP
            rows.append((at, height))
            at += height
        placed.append(Placed(chart, top, tuple(rows)))
        top = at
    return placed, top + _GAP
