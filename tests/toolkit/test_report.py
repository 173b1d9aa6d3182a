"""Reports are made from a recorded journal: no device and no measuring."""

import csv
import io
import json
import math
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kernelforge.cli.main import main
from kernelforge.families import get_family
from kernelforge.report import write_report
from kernelforge.report.bench_journal import BenchRecord, append_bench, read_bench
from kernelforge.report.frame import gather
from kernelforge.report.kernels import kernel_rows
from kernelforge.report.models import model_rows
from kernelforge.report.summary import search_sentence
from kernelforge.report.tables import NONE, tables
from kernelforge.tune.journal import read_journal
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Entry, Verified
from kernelforge_runtime.dtypes import F16
from tests.toolkit.cli_process import NO_VULKAN, kernelforge, one_line

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"


class Page(HTMLParser):
    """The cells of every table of a page by its id, and all text outside of its style."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.tags = {}, [], []
        self._rows, self._cell, self._skip = None, None, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._skip = tag == "style"
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs)["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        self._skip = False
        if tag in ("td", "th"):
            self._rows[-1].append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if not self._skip:
            self.text.append(data)


@pytest.fixture(scope="module")
def frame():
    return gather(RECORDED, "llvmpipe")


@pytest.fixture(scope="module")
def folder(frame, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    write_report(frame, out)
    return out


@pytest.fixture
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def read_csv(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", ["kernels", "models", "ceilings", "families"])
def test_page_and_markdown_and_csv_hold_the_same_cells(folder, page, name):
    expected = [[cell or NONE for cell in row] for row in read_csv(folder / f"{name}.csv")[1:]]
    assert len(expected) > 1
    assert page.tables[name][1:] == expected
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    for row in expected:
        assert f"| {' | '.join(row)} |" in markdown


def test_labels_of_the_bars_are_the_speedups_of_the_csv(folder, page):
    text = "\n".join(page.text)
    heads, *rows = read_csv(folder / "kernels.csv")
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        assert f"{cells['speedup']}×" in text
        assert f"{cells['default_us']} → {cells['median_us']} µs" in text
        assert f"{cells['share_percent']} %" in text


def test_speedup_is_the_quotient_of_the_times_beside_it(folder):
    heads, *rows = read_csv(folder / "kernels.csv")
    for row in rows:
        cells = dict(zip(heads, row, strict=True))
        quotient = float(cells["default_us"]) / float(cells["median_us"])
        assert float(cells["speedup"]) == pytest.approx(quotient, abs=0.011)


def test_the_same_journal_gives_the_same_bytes(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(RECORDED, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))  # when a file was copied must not count
    written = write_report(gather(copy, "llvmpipe"), tmp_path / "again")
    assert len(written) == 11
    for path in written:
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_page_fetches_nothing(folder, page):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object"}
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "srcset")]
    targets = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    assert targets.pop(0) == "data:,"  # an icon of no bytes, so that none is asked for
    names = {attrs.get("id") for _, attrs in page.tags}
    assert targets and {target.removeprefix("#") for target in targets} <= names


def test_page_is_made_for_small_screens_and_for_the_dark(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "max-width: 760px" in text


def test_positions_in_the_pictures_are_within_them(page):
    for tag, attrs in page.tags:
        for name in ("x", "y", "x1", "x2", "y1", "y2", "width"):
            value = attrs.get(name) or ""
            if tag in ("svg", "rect", "line", "text") and value.endswith("%"):
                assert 0 <= float(value[:-1]) <= 100, (tag, attrs)


def test_software_device_is_called_a_cpu_rasteriser(frame, folder, page):
    assert frame.is_software
    assert "CPU rasteriser" in "".join(page.text)
    assert "(CPU rasteriser)" in (folder / "report.md").read_text(encoding="utf-8").split("\n")[0]


def test_date_is_the_newest_records(frame):
    assert frame.time == "2026-11-21T03:13:55Z"
    assert ("Newest record", frame.time) in frame.provenance


def test_commands_name_device_model_and_sizes(frame):
    assert frame.commands[-1] == "kernelforge report --device llvmpipe"
    assert (
        "kernelforge bench kjv-rwkv7-2.6m.safetensors --device llvmpipe --weights f16 "
        "--pp 32,256 --tg 32 --reps 4 --compare-bundle generic" in frame.commands
    )


def test_history_counts_only_the_template_of_the_winner(frame):
    row = next(row for row in frame.kernels if row.family == "gemv")
    assert row.trials == len(row.history) == 14


def test_failed_trials_are_counted_and_have_no_time(frame, folder):
    row = next(row for row in frame.kernels if row.family == "wkv7")
    assert (row.failed, sum(math.isnan(ns) for ns in row.history)) == (1, 1)
    _, *lines = read_csv(folder / "history.csv")
    empty = [line for line in lines if line[0] == "wkv7" and line[4] == ""]
    assert len(empty) == 1


def test_best_so_far_never_rises(folder):
    best = {}
    for *place, _, _, ns in read_csv(folder / "history.csv")[1:]:
        key = tuple(place)
        assert float(ns) <= best.get(key, math.inf)
        best[key] = float(ns)


def test_default_stays_where_nothing_was_faster(frame):
    row = next(row for row in frame.kernels if row.family == "token_shift")
    assert row.speedup == 1.0


def test_last_finals_of_a_problem_count():
    found = [m for m in read_journal(RECORDED / "journal.jsonl") if m.family == "copy"]
    finals = [m for m in found if m.phase == "final"]
    again = [replace(m, median_ns=7.0, samples_ns=(7.0, 7.0)) for m in finals[-2:]]
    (row,) = kernel_rows([*found, *again], [], None)
    assert row.median_ns == 7.0


def test_a_winner_of_another_problem_that_is_faster_here_is_the_winner():
    found = [m for m in read_journal(RECORDED / "journal.jsonl") if m.family == "copy"]
    (own,) = kernel_rows(found, [], None)
    last = next(m for m in reversed(found) if m.phase == "final")
    half = own.median_ns / 2
    faster = replace(last, phase="cross", variant="copy/f32/OTHER1", median_ns=half,
                     samples_ns=(10.0, 12.0, 14.0), spread_ns=2.0)  # fmt: skip
    slower = replace(faster, variant="copy/f32/SLOW1", median_ns=3 * half)
    (row,) = kernel_rows([*found, faster, slower], [], None)
    assert (row.variant, row.origin, row.samples) == ("OTHER1", "this run", 3)
    assert row.median_ns == half and row.speedup == pytest.approx(2 * own.speedup)
    assert row.spread_ns / row.median_ns == pytest.approx(2 / 12)
    (row,) = kernel_rows([*found, replace(faster, driver="older")], [], None)
    assert row.variant == own.variant
    (row,) = kernel_rows([faster, *found], [], None)  # tuned again since
    assert row.variant == own.variant


def test_kernel_without_a_good_default_has_no_speedup():
    found = [m for m in read_journal(RECORDED / "journal.jsonl") if m.family == "copy"]
    finals = [m for m in found if m.phase == "final"]
    broken = replace(finals[-2], median_ns=math.nan, samples_ns=())
    (row,) = kernel_rows([broken, *finals[-1:]], [], None)
    assert math.isnan(row.speedup)


def test_winners_are_counted_by_who_proposed_them(frame):
    journal = read_journal(RECORDED / "journal.jsonl")
    assert "Of the winners" not in search_sentence(frame)  # a journal that does not know
    finals = {m.variant for m in journal if m.phase == "final"}
    told = [replace(m, origin="portfolio" if m.variant in finals else "search") for m in journal]
    rows = kernel_rows(told, (), None)
    sentence = search_sentence(replace(frame, kernels=rows))
    assert f"{len(rows)} from the portfolio that ships with the package" in sentence
    assert all(1 <= row.good_trial <= row.trials for row in rows)
    savings = [row.saving for row in rows if row.saving is not None]
    assert savings
    total = sum(saving.trials for saving in savings)
    assert f"what {len(savings)} searches proposed themselves, those suggestions" in sentence
    assert f"{abs(total)} trials on the way to 95 %" in sentence
    forged = [replace(m, origin="<b>mine</b>") for m in journal]
    assert "mine" not in search_sentence(replace(frame, kernels=kernel_rows(forged, (), None)))


def test_bundle_alone_is_reported_too():
    family, problem = get_family("gemv"), Problem(K=64, M=32, S=1, T=1, Y=32, X=32)
    params = family.default(F16, GENERIC, problem)
    entry = Entry(
        "gemv", "f16", problem, family.variant(F16, params).name, family.signature(F16, params),
        "0" * 64, "0" * 64, "0" * 64, 1000, 10, 40, 3000, Verified(1, 0.0, 1.0),
    )  # fmt: skip
    (row,) = kernel_rows([], [entry], None)
    assert (row.problem, row.speedup, row.trials) == ("M32.K64.S1.T1.X32.Y32", 3.0, 40)
    assert row.rate.gbps > 0


def record(**changed):
    plain = BenchRecord(
        time="2026-01-01T00:00:00Z", model="m", version="rwkv7", sizes="L1 C64 V256",
        parameters=10, device="llvmpipe", device_name="llvmpipe", device_type="cpu", driver="d",
        weights="f16", bundle="llvmpipe", bundle_sha256="0", kernels="", test="tg8",
        tok_per_s=(20.0, 22.0, 30.0),
    )  # fmt: skip
    return replace(plain, **changed)


def test_bench_records_survive_the_journal(tmp_path):
    records = [record(), record(test="pp8", host_us=3.5)]
    append_bench(tmp_path / "bench.jsonl", records)
    append_bench(tmp_path / "bench.jsonl", [record(weights="f32")])
    found, ceilings = read_bench(tmp_path / "bench.jsonl")
    assert [r.to_json() for r in found] == [r.to_json() for r in [*records, record(weights="f32")]]
    assert ceilings is None


def test_half_written_bench_line_is_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "bench.jsonl"
    append_bench(path, [record()])
    path.write_bytes(path.read_bytes() + b'{"kind":"bench","time')
    append_bench(path, [record(test="tg9")])
    found, _ = read_bench(path)
    assert [r.test for r in found] == ["tg8", "tg9"]
    assert "line 2 is damaged" in caplog.text


def test_newest_bench_of_a_test_counts_and_pairs_are_compared_by_their_turns():
    old = record(tok_per_s=(1.0, 1.0, 1.0))
    tuned = record(pair="now")
    generic = record(pair="now", bundle="generic", tok_per_s=(10.0, 11.0, 10.0))
    first, second = model_rows([old, tuned, generic])
    assert first.record is tuned and first.other is generic
    assert first.ratio == 2.0 and first.in_turns and first.low <= 2.0 <= first.high
    assert math.isnan(second.ratio)


def test_benches_of_different_runs_are_compared_without_an_interval():
    first, _ = model_rows([record(), record(bundle="generic", tok_per_s=(11.0, 11.0))])
    assert first.ratio == 2.0 and not first.in_turns


def test_text_from_a_journal_cannot_become_markup(tmp_path):
    journal = tmp_path / "journal"
    append_bench(journal / "bench.jsonl", [record(model="<script>x|y</script>")])
    write_report(gather(journal, "llvmpipe"), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_tables_without_rows_are_left_out(tmp_path):
    append_bench(tmp_path / "bench.jsonl", [record()])
    frame = gather(tmp_path, "llvmpipe")
    assert [table.name for table in tables(frame)] == ["models"]


def test_command_writes_where_it_says_without_any_device(tmp_path):
    done = kernelforge("report", "--journal", RECORDED, "--out", tmp_path, "--quiet", **NO_VULKAN)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "report.html"
    assert (tmp_path / "report.html").is_file()


def test_command_reports_every_measured_device_by_itself(tmp_path):
    for slug in ("llvmpipe", "other"):
        shutil.copytree(RECORDED, tmp_path / "kernelforge" / "tuning" / slug)
    out = tmp_path / "out"
    done = kernelforge("report", "--out", out, "--json", XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["reports"]
    assert [report["files"][0] for report in told] == [
        str(out / "llvmpipe" / "report.html"),
        str(out / "other" / "report.html"),
    ]
    done = kernelforge("report", "--device", "oth", "--out", out, XDG_DATA_HOME=str(tmp_path))
    assert done.stdout.split() == [str(out / "report.html")]


def test_with_nothing_to_report_one_line_says_what_makes_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # away from this checkout's own reports
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["report"]) == 1
    line = one_line(capsys.readouterr().err, "kernelforge report: nothing to report: ")
    assert "kernelforge tune --model MODEL" in line and "kernelforge bench MODEL" in line


def test_model_that_was_not_measured_is_named(tmp_path):
    done = kernelforge("report", "nobody.pth", "--journal", RECORDED, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "nobody.pth: no bench" in one_line(done.stderr, "kernelforge report: ")
    assert not (tmp_path / "out").exists()
