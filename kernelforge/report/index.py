"""The page that links all reports of a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kernelforge.report.cells import from_markdown
from kernelforge.report.html import render
from kernelforge.report.writing import write_files

INDEX_FILE = "index.html"
_PAGES = ("report.html", "compare.html", "README.md")
_MOST_FACTS = 4


@dataclass(frozen=True)
class Entry:
    """One report.

    Attributes:
        title: its heading.
        kind: what it is, in a word.
        facts: headline numbers, as number and what it is; or sentences with no number.
        links: names and addresses, relative to the index; the page's first.
    """

    title: str
    kind: str
    facts: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...]


def write_index(root: Path) -> Path | None:
    """Writes index.html of a folder of reports; None where it has none.

    Raises:
        ReportError: it cannot be written.
    """
    entries = find_entries(root)
    if not entries:
        return None
    page = render("index.html.j2", entries=entries, readme=(root / "README.md").is_file())
    return write_files(root, {INDEX_FILE: page})[0]


def find_entries(root: Path) -> list[Entry]:
    """Every report in a folder's folders: devices, then comparisons, then what else there is."""
    if not root.is_dir():
        return []
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        page = next((name for name in _PAGES if (folder / name).is_file()), None)
        if page is not None:
            found.append((_PAGES.index(page), folder.name, _entry(folder, page)))
    return [entry for *_, entry in sorted(found, key=lambda item: item[:2])]


def _entry(folder: Path, page: str) -> Entry:
    text = _text(folder / page.replace(".html", ".md"))
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    found = re.findall(r"^\* \*\*(.+?)\*\* (.+)$", text, re.MULTILINE)
    facts = tuple((value, from_markdown(words)) for value, words in found)
    if page == "compare.html":
        said = re.findall(r"^\* ([^*].*)$", text, re.MULTILINE)
        facts = tuple(("", from_markdown(line)) for line in said)
    others = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_file() and p.suffix in (".md", ".csv", ".html", ".json") and p.name != page
    )
    return Entry(
        from_markdown(title[1]) if title else folder.name,
        {"report.html": "device", "compare.html": "comparison"}.get(page, "study"),
        facts[:_MOST_FACTS],
        tuple((name, quote(f"{folder.name}/{name}")) for name in (page, *others)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
