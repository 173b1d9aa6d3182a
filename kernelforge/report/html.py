"""The page: tables, pictures and sentences put into one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kernelforge.report import figures, summary
from kernelforge.report.cells import Table, number
from kernelforge.report.family_figures import (
    batch_charts,
    family_figures,
    format_charts,
    token_charts,
)
from kernelforge.report.frame import Frame
from kernelforge.report.tables import TABLES


def render_page(frame: Frame, tables: list[Table]) -> str:
    """The HTML text."""
    by_name: dict[str, Table | None] = dict.fromkeys(TABLES)
    by_name.update({table.name: table for table in tables})
    limits = frame.ceilings
    charts: dict[str, object] = {
        "models": figures.model_charts(frame),
        "speedups": figures.speedups(frame),
        "roofline": figures.roofline(frame),
        "shares": figures.shares(frame),
        "family_speedups": figures.family_speedups(frame),
        "family_shares": figures.family_shares(frame),
        "families": family_figures(frame.families),
        "batches": batch_charts(frame.serving, frame.slug),
        "formats": format_charts(frame.formats),
        "tokens": token_charts(frame.tokens, frame.slug),
    }
    return render(
        "page.html.j2",
        frame=frame,
        tables=by_name,
        tiles=summary.tiles(frame),
        charts=charts,
        sections=_sections(charts, by_name),
        sentences={
            "models": summary.model_sentence(frame),
            "speedups": summary.speedup_sentence(frame),
            "shares": summary.share_sentence(frame),
            "searches": summary.search_sentence(frame),
        },
        ceilings={
            "memory": number(limits.memory_gbps) if limits else "",
            "compute": number(limits.fma_gflops) if limits else "",
        },
    )


def _sections(
    charts: Mapping[str, object], tables: Mapping[str, Table | None]
) -> list[tuple[str, str]]:
    """Anchors and titles of what the page has, in its order."""
    wanted = (
        ("models", "Models", charts["models"]),
        ("serving", "Serving", tables["serving"]),
        ("tokens", "A token's time", charts["tokens"]),
        ("formats", "Weight formats", tables["formats"]),
        ("peers", "Other engines", tables["peers"] or tables["left_out"]),
        ("products", "Products", tables["products"]),
        ("speedups", "Speedups", charts["speedups"]),
        ("roofline", "Roofline", charts["roofline"]),
        ("families", "Families", tables["families"]),
        ("searches", "Searches", charts["families"]),
        ("kernels", "Kernels", tables["kernels"]),
        ("device", "Device", True),
        ("fft", "VkFFT", tables["fft"]),
        ("provenance", "Provenance", True),
    )
    return [(anchor, title) for anchor, title, there in wanted if there]


def render(template: str, **values: object) -> str:
    """A page from one of this package's templates."""
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["wbr"] = Markup(".<wbr>")  # long variant names break at their dots
    return environment.get_template(template).render(**values)


def _asset(name: str) -> str:
    return (files("kernelforge.report") / name).read_text(encoding="utf-8")
