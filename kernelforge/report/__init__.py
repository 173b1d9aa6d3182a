"""Performance reports: what was measured, as a page, as markdown and as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kernelforge.report.writing import write_files

if TYPE_CHECKING:  # a bench only needs `bench_journal` of this package
    from kernelforge.report.frame import Frame

PAGE_FILE = "report.html"
MARKDOWN_FILE = "report.md"


def write_report(frame: Frame, out: Path) -> list[Path]:
    """Writes page, markdown, CSV and pictures into a folder; gives their paths, the page's first.

    The same frame always gives the same bytes.

    Raises:
        ReportError: a file cannot be written.
    """
    from kernelforge.report.html import render_page
    from kernelforge.report.markdown import render_markdown
    from kernelforge.report.pictures import PICTURES, render_pictures
    from kernelforge.report.tables import TABLES, tables

    found = tables(frame)
    texts = {
        PAGE_FILE: render_page(frame, found),
        MARKDOWN_FILE: render_markdown(frame, found),
        **{f"{table.name}.csv": table.to_csv() for table in found},
        **render_pictures(frame),
    }
    # What an earlier report had and this one has not.
    gone = [n for n in (*(f"{name}.csv" for name in TABLES), *PICTURES) if n not in texts]
    return write_files(out, texts, gone)
