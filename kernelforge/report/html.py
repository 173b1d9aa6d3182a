"""The page: tables, pictures and sentences put into one file that needs nothing else."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from kernelforge.report import figures, summary
from kernelforge.report.frame import Frame
from kernelforge.report.tables import Table, number


def render_page(frame: Frame, tables: list[Table]) -> str:
    """The HTML text."""
    by_name: dict[str, Table | None] = dict.fromkeys(
        ("kernels", "models", "peers", "products", "ceilings", "history")
    )
    by_name.update({table.name: table for table in tables})
    limits = frame.ceilings
    return render(
        "page.html.j2",
        frame=frame,
        tables=by_name,
        tiles=summary.tiles(frame),
        charts={
            "models": figures.model_charts(frame),
            "speedups": figures.speedups(frame),
            "roofline": figures.roofline(frame),
            "shares": figures.shares(frame),
            "histories": figures.histories(frame),
        },
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


def render(template: str, **values: object) -> str:
    """A page from one of this package's templates."""
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined
    )
    environment.globals["wbr"] = Markup(".<wbr>")  # long variant names break at their dots
    return environment.get_template(template).render(**values)


def _asset(name: str) -> str:
    return (files("kernelforge.report") / name).read_text(encoding="utf-8")
