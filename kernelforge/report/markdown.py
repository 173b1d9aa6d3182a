"""The same report as markdown, for places that show no HTML."""

from __future__ import annotations

from kernelforge.report import summary
from kernelforge.report.cells import Table, to_markdown
from kernelforge.report.frame import Frame


def render_markdown(frame: Frame, tables: list[Table]) -> str:
    """The markdown text. The search's course is only in its CSV: it is long."""
    label = f" ({frame.label})" if frame.label else ""
    lines = [f"# {to_markdown(frame.name + label)}", "", to_markdown(frame.driver), ""]
    if frame.is_software:
        lines += ["This device computes on the CPU; its times say nothing about any GPU.", ""]
    lines += [f"* **{tile.value}** {to_markdown(tile.text)}" for tile in summary.tiles(frame)]
    sentences = {
        "models": summary.model_sentence(frame),
        "kernels": " ".join(
            filter(None, (summary.speedup_sentence(frame), summary.search_sentence(frame)))
        ),
        "ceilings": summary.share_sentence(frame),
    }
    order = {
        name: place
        for place, name in enumerate((
            "models", "serving", "operations", "formats", "peers", "left_out", "products",
            "families",
            "importance", "heat", "kernels", "ceilings", "fft",
        ))
    }  # fmt: skip
    for table in sorted((t for t in tables if t.name in order), key=lambda t: order[t.name]):
        lines += ["", f"## {table.title}", ""]
        if sentence := sentences.get(table.name):
            lines += [to_markdown(sentence), ""]
        note = to_markdown(table.note)
        lines += [table.to_markdown(), "", f"{note} The same numbers: `{table.name}.csv`."]
    lines += ["", "## Device", ""]
    lines += [f"* {key}: {to_markdown(value)}" for key, value in frame.card] or [
        "Only its name is known."
    ]
    lines += ["", "## Where the numbers come from", ""]
    lines += [f"* {key}: {to_markdown(value)}" for key, value in frame.provenance]
    lines += ["", "```", *frame.commands, "```", ""]
    return "\n".join(lines)
