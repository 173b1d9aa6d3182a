"""The report's page as a browser shows it: drawn, readable, reachable by keyboard, silent."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge.report import write_report
from kernelforge.report.bench_journal import BenchRecord, Operation, append_bench
from kernelforge.report.compare import compare, read_side
from kernelforge.report.compare.pages import write_comparison
from kernelforge.report.frame import gather
from kernelforge.report.serving import append_serving
from kernelforge.report.tables import tables
from tests.toolkit.chromium import Browser, find_chromium

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"
CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium-headless-shell"
)
WIDTHS = (400, 1600)
# Every chart has a mark with a size on the screen; a heat map's are its coloured cells.
DRAWN = """[...document.querySelectorAll('[data-chart]')].map(f => [f.dataset.chart,
  [...f.querySelectorAll('rect, path, circle, td[class*=h]')].filter(e => {
    const b = e.getBoundingClientRect(); return b.width + b.height > 0; }).length])"""
# Text of tables and bars that stands outside of the window and cannot be scrolled to.
LOST = """[...document.querySelectorAll('p, h1, h2, h3, h4, text, .name, .remark, dd, a')]
  .filter(e => !e.closest('.box')).filter(e => { const b = e.getBoundingClientRect();
    return b.width && (b.right > innerWidth + 1 || b.left < -1); }).map(e => e.textContent)"""
# The contrast of each text with the nearest painted background behind it, by WCAG 2.
CONTRAST = """(() => { const rgb = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = c => { const v = rgb(c).slice(0, 3).map(x => (x /= 255) <= .03928 ? x / 12.92
    : ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e)
    .backgroundColor; if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  return [...document.querySelectorAll('p, h1, h2, h3, h4, td, th, dd, dt, a, .name, .remark')]
    .filter(e => e.textContent.trim()).map(e => { const a = light(getComputedStyle(e).color),
      b = light(behind(e)); return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05),
      e.textContent.slice(0, 40)]; }).filter(pair => pair[0] < 4.5); })()"""


@pytest.fixture(scope="module")
def browser():
    found = Browser(CHROMIUM)
    yield found
    found.close()


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    """The recorded journal, with operations of a token and a comparison of formats besides."""
    folder = tmp_path_factory.mktemp("journal") / "llvmpipe"
    shutil.copytree(RECORDED, folder)
    operations = (
        Operation("ffn.key", "gemv", 5, 700.25),
        Operation("<b>odd</b>", "wkv7", 5, 99.5),
    )
    record = BenchRecord(
        time="2026-11-21T03:13:55Z", model="m" * 60, version="rwkv7", sizes="L1 C64 V256",
        parameters=10, device="llvmpipe", device_name="llvmpipe", device_type="cpu", driver="d",
        weights="q8", bundle="llvmpipe", bundle_sha256="0", kernels="", test="tg8",
        tok_per_s=(1000.0, 1010.0), dispatches=10, weight_bytes=12_345_678,
        operations=operations, operations_from="traced",
    )  # fmt: skip
    other = replace(record, bundle="b" * 120, test="tg9", operations=())
    append_bench(folder / "bench.jsonl", [record, other])
    lines = (folder / "journal.jsonl").read_text().splitlines()
    copied = [line for line in lines if '"family":"copy"' in line]
    assert copied
    long = [line.replace('"family":"copy"', f'"family":"copy_{"y" * 120}"') for line in copied]
    (folder / "journal.jsonl").write_text("\n".join([*lines, *long]) + "\n")
    serving = [
        {"weights": "q8", "bundle": "llvmpipe", "test": f"tg8@{n}", "batch": n, "unit": "tok/s",
         "samples": [100.0 * n, 101.0 * n], "dispatches": 9}
        for n in (1, 8)
    ]  # fmt: skip
    first = {"weights": "q8", "bundle": "llvmpipe", "test": "first-token", "batch": 1, "unit": "s"}
    append_serving(folder / "bench.jsonl", "2026-11-21T03:13:55Z", "m", serving)
    append_serving(folder / "bench.jsonl", "2026-11-21T03:13:55Z", "m",
                   [{**first, "samples": [0.25]}])  # fmt: skip
    append_serving(folder / "bench.jsonl", "2026-11-21T03:13:55Z", "m",
                   [{**first, "samples": [-1, "x"]}])  # fmt: skip
    one = {
        "weights": "q8", "tok_per_s": 100.0, "weight_bytes": 1000, "perplexity": 2.5,
        "worse_percent": 0.1, "divergence": 0.001, "pareto": True, "recommended": True,
    }  # fmt: skip
    about = {"model": "m.safetensors", "text": "t.txt", "formats": [one]}
    (folder / "pareto.json").write_text(json.dumps({"comparisons": [about]}))
    return gather(folder, "llvmpipe")


@pytest.fixture(scope="module")
def page(frame, tmp_path_factory):
    return write_report(frame, tmp_path_factory.mktemp("page"))[0]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    first, second = (read_side(str(RECORDED), Path("/nonexistent")) for _ in range(2))
    for (key, timing), factor in zip(first.kernels.items(), (3.0, 0.2), strict=False):
        second.kernels[key] = replace(timing, value=factor * timing.value)
    found = compare(first, second)
    assert found.slower and found.faster
    return write_comparison(found, tmp_path_factory.mktemp("compare"), "kernelforge report")[0]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_silent_whole_and_readable(browser, page, frame, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.console == []
    assert browser.requests == [page.resolve().as_uri()]
    drawn = browser.evaluate(DRAWN)
    assert all(marks > 0 for _, marks in drawn), drawn
    counts = {name: sum(kind == name for kind, _ in drawn) for name, _ in drawn}
    assert counts["history"] == len({(k.family, k.precision) for k in frame.kernels if k.history})
    assert counts["token"] == len(frame.tokens) == 1
    assert counts["formats"] == 1
    assert counts["batch"] == 1 and [row.times_one for row in frame.serving][1] == 8.0
    assert {"model", "speedups", "roofline", "shares", "importance", "heat"} <= set(counts)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(LOST) == []
    assert browser.evaluate(CONTRAST) == []
    size = "Math.min(...[...document.querySelectorAll('p, td, .name, .remark, svg text')].map("
    assert browser.evaluate(size + "e => parseFloat(getComputedStyle(e).fontSize)))") >= 12
    dark_paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark_paper == "rgb(20, 22, 26)") is dark


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_is_silent_whole_and_readable(browser, comparison, width):
    browser.open(comparison, width)
    assert browser.console == [] and len(browser.requests) == 1
    assert [kind for kind, marks in browser.evaluate(DRAWN) if marks] == ["ratios"]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(LOST) == [] and browser.evaluate(CONTRAST) == []
    colour = browser.evaluate("getComputedStyle(document.querySelector('tr.slower td')).color")
    assert colour == "rgb(179, 38, 30)"  # red


def test_everything_that_scrolls_leads_somewhere_or_is_a_picture_is_reached_by_tab(browser, page):
    browser.open(page, 400)
    wanted = browser.evaluate(
        "[...document.querySelectorAll('a, summary, .box, figure:not([data-chart=heat])')]"
        ".filter(e => !e.matches('.box') || e.scrollWidth > e.clientWidth)"
        ".filter(e => e.getBoundingClientRect().height).length"
    )
    reached = "document.activeElement === document.body ? '' : document.activeElement.outerHTML"
    found = set()
    for _ in range(wanted + 40):
        browser.press("Tab")
        found.add(browser.evaluate(f"({reached}).slice(0, 300)"))
    assert len(found - {""}) >= wanted > 10
    browser.evaluate("document.querySelector('nav a[href=\"#provenance\"]').focus()")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    browser.press("Tab")
    assert browser.evaluate(outline) != "none"
    browser.evaluate("document.querySelector('nav a[href=\"#provenance\"]').focus()")
    browser.press("Enter")
    assert browser.evaluate("location.hash") == "#provenance"


def test_every_picture_says_in_words_what_it_is(browser, page):
    browser.open(page, 1600)
    nameless = browser.evaluate(
        "[...document.querySelectorAll('figure, [role=img], .box')].filter(e => "
        "!(e.getAttribute('aria-label') || '').trim() && !e.querySelector('dl, pre'))"
        ".map(e => e.outerHTML.slice(0, 90))"
    )
    assert nameless == []
    unnamed = "[...document.querySelectorAll('svg:not([aria-hidden])')].filter(e => "
    unnamed += "!e.closest('[role=img]')).map(e => e.outerHTML.slice(0, 90))"
    assert browser.evaluate(unnamed) == []


def test_numbers_of_the_drawn_page_are_the_csvs(browser, page, frame):
    browser.open(page, 1600)
    for table in tables(frame):
        cells = browser.evaluate(
            f"[...document.querySelectorAll('#{table.name} tbody tr')].map("
            "r => [...r.cells].map(c => c.textContent))"
        )
        if table.name in ("history", "importance", "heat"):
            assert cells == []  # pictures on the page; below
            continue
        with (page.parent / f"{table.name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        assert [[c.replace("–", "") for c in row] for row in cells] == rows
    shown = browser.evaluate("document.body.textContent")
    with (page.parent / "importance.csv").open(encoding="utf-8") as file:
        for row in list(csv.DictReader(file))[:8]:
            assert f"{row['importance_percent']} %" in shown
    with (page.parent / "heat.csv").open(encoding="utf-8") as file:
        heat = {row["times_best"] for row in csv.DictReader(file)}
    on_page = browser.evaluate(
        "[...document.querySelectorAll('.heat td[class*=h]')].map(e => e.textContent)"
    )
    assert heat == set(on_page) and all(math.isfinite(float(text)) for text in heat)
