"""Journals that no run of ours wrote: damaged, of several devices, without a winner, hostile."""

import csv
import json
import logging
import math
import resource
import shlex
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from xml.dom import minidom

import pytest

from kernelforge.cli.main import main
from kernelforge.errors import MeasureError, ReportError
from kernelforge.measure.baseline import Ceilings
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.report import parameters, write_report
from kernelforge.report.bench_journal import BenchRecord, append_bench, read_bench
from kernelforge.report.cells import from_markdown, to_markdown
from kernelforge.report.compare import read_side
from kernelforge.report.figures import MOST_DOTS, history
from kernelforge.report.formats import format_rows
from kernelforge.report.frame import NothingToReport, gather
from kernelforge.report.kept import keep
from kernelforge.report.kernels import kernel_rows
from kernelforge.report.parameters import Trial, importance
from kernelforge.report.serving import append_serving, serving_rows
from kernelforge.tune.journal import read_journal
from tests.toolkit.cli_process import one_line

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"
NOWHERE = Path("/nonexistent")
BENCH = {
    "time": "2026-01-01T00:00:00Z", "model": "m", "version": "rwkv7", "sizes": "L1 C64 V256",
    "parameters": 10, "device": "llvmpipe", "device_name": "llvmpipe", "device_type": "cpu",
    "driver": "d", "weights": "f16", "bundle": "llvmpipe", "bundle_sha256": "0", "kernels": "",
    "test": "tg8", "tok_per_s": [20.0, 22.0, 30.0],
}  # fmt: skip


def copy_lines():
    """Lines of the recorded journal that are of one small kernel."""
    lines = [json.loads(line) for line in (RECORDED / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if line["family"] == "copy"]


def write_lines(folder, lines, file="journal.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"median_ns": -5.0},
        {"median_ns": 1e300},
        {"median_ns": 1e-200},
        {"median_ns": 10**400},
        {"median_ns": [1]},
        {"median_ns": True},
        {"spread_ns": -1.0},
        {"samples_ns": [1.0, -2.0]},
        {"samples_ns": [float("nan")]},
        {"samples_ns": "12"},
        {"variant": 7},
        {"variant": "x" * 5000},
        {"device": ["llvmpipe"]},
        {"driver": None},
        {"outcome": "FINE"},
        {"outcome": []},
        {"dispatches": -1},
        {"seed": "1"},
    ],
    ids=str,
)
def test_a_measurement_that_cannot_be_is_damage(change):
    whole = copy_lines()[0]
    assert Measurement.from_json(whole).ok
    with pytest.raises(MeasureError):
        Measurement.from_json({**whole, **change})


def test_a_time_of_nothing_is_no_time():
    found = Measurement.from_json({**copy_lines()[0], "median_ns": 0.0})
    assert found.outcome is Outcome.OK and not found.ok


@pytest.mark.parametrize(
    "change",
    [
        {"tok_per_s": []},
        {"tok_per_s": [0.0]},
        {"tok_per_s": [-1.0]},
        {"tok_per_s": [float("nan")]},
        {"tok_per_s": [float("inf")]},
        {"tok_per_s": 7},
        {"test": "ppx"},
        {"test": "tg0"},
        {"test": "pp" + "9" * 50},
        {"parameters": "10"},
        {"parameters": -1},
        {"model": None},
        {"model": {}},
        {"device_name": "x" * 5000},
        {"operations": [{"name": "a", "family": "b", "count": 1, "us": -1}]},
        {"operations": [7]},
        {"operations": None},
    ],
    ids=str,
)
def test_a_bench_that_cannot_be_is_damage(change):
    assert BenchRecord.from_json(BENCH).median == 22.0
    with pytest.raises(ReportError):
        BenchRecord.from_json({**BENCH, **change})


@pytest.mark.parametrize("value", [float("nan"), -1.0, 1e300, "12", None, []])
def test_ceilings_that_cannot_be_are_refused(value):
    whole = {"read_gbps": 1.0, "copy_gbps": 1.0, "fma_gflops": 1.0, "dispatch_us": 0.0,
             "submit_us": 1.0, "device": "d", "driver": "", "clock": ""}  # fmt: skip
    assert Ceilings.from_json(whole).memory_gbps == 1.0
    with pytest.raises(MeasureError, match="measure them again"):
        Ceilings.from_json({**whole, "fma_gflops": value})


def test_damage_of_a_million_lines_is_said_in_a_few(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    good = json.dumps(copy_lines()[0])
    nested = "[" * 100_000  # deeper than the parser goes
    path.write_text("\n".join([good, nested, *(500 * ["{"]), "7", good, ""]))
    with caplog.at_level(logging.WARNING):
        assert len(read_journal(path)) == 2
    assert "line 2 is damaged" in caplog.text
    assert "499 more lines are damaged" in caplog.text and len(caplog.records) == 4


def test_a_report_is_made_of_what_is_left(tmp_path):
    lines = copy_lines()
    bad = [{**line, key: value} for line in lines[:3] for key, value in (
        ("median_ns", -1), ("problem", 3), ("family", None), ("problem", "HEADS12.?"))]  # fmt: skip
    write_lines(tmp_path / "j", [*lines, *bad])
    append_bench(tmp_path / "j" / "bench.jsonl", [], None,
                 {"matmul": {"label": "t", "size": 1024, "gflops": {"f32": 0}}})  # fmt: skip
    frame = gather(tmp_path / "j", "llvmpipe")
    (row,) = [row for row in frame.kernels if row.family == "copy" and row.samples]
    assert row.speedup > 0 and frame.matmul is None


def test_a_kernel_of_a_family_that_is_no_more_keeps_its_times(tmp_path):
    lines = [{**line, "family": "gone", "variant": line["variant"].replace("copy/", "gone/"),
              "problem": "HEADS12.W8"} for line in copy_lines()]  # fmt: skip
    frame = gather(write_lines(tmp_path / "j", lines), "elsewhere")
    (row,) = frame.kernels
    assert row.cost is None and row.speedup > 0
    write_report(frame, tmp_path / "out")
    with (tmp_path / "out" / "kernels.csv").open() as file:
        (cells,) = csv.DictReader(file)
    assert cells["family"] == "gone" and cells["gbps"] == "" and float(cells["median_us"]) > 0


def test_names_of_others_stay_names_everywhere(tmp_path):
    name = "![x](http://h/p.png)|<script>y</script>\x1b[31m\ud800`*\u202e"
    journal = tmp_path / "j"
    record = BenchRecord.from_json({**BENCH, "model": name, "device_name": name, "driver": name})
    append_bench(journal / "bench.jsonl", [record])
    paths = write_report(gather(journal, "somewhere"), tmp_path / "out")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text or path.suffix in (".csv", ".md")
        assert not {"\x1b", "\u202e"} & set(text)
        if path.suffix == ".svg":
            minidom.parseString(path.read_bytes())
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    shown, _, commands = text.partition("\n```\n")
    assert "!\\[x" in shown and "![x" not in shown and "\\<script" in shown
    with (tmp_path / "out" / "models.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    line = next(line for line in shown.splitlines() if to_markdown(row["model"]) in line)
    assert from_markdown(line).count(row["model"]) == 1
    bench = next(line for line in commands.splitlines() if line.startswith("kernelforge bench"))
    assert shlex.split(bench)[2] == f"{row['model']}.safetensors"


@pytest.fixture
def two_devices(tmp_path):
    lines = copy_lines()
    other = [{**line, "device": "other", "median_ns": line["median_ns"] and 3 * line["median_ns"]}
             for line in lines]  # fmt: skip
    journal = write_lines(tmp_path / "both", [*lines, *other])
    append_bench(journal / "bench.jsonl", [BenchRecord.from_json(BENCH)])
    row = {"weights": "f16", "bundle": "b", "test": "tg8@2", "batch": 2, "unit": "tok/s",
           "samples": [1.0]}  # fmt: skip
    append_serving(journal / "bench.jsonl", "2026-01-01T00:00:00Z", "m", [row], "llvmpipe")
    return journal


def test_two_devices_in_one_journal_are_two_reports(two_devices, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["report", "--journal", str(two_devices), "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [
        str(out / "llvmpipe" / "report.html"), str(out / "other" / "report.html"),
    ]  # fmt: skip
    times = {}
    for slug in ("llvmpipe", "other"):
        with (out / slug / "kernels.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["family"] == "copy"]
        times[slug] = [float(row["median_us"]) for row in rows if row["samples"]]
    assert times["other"] == pytest.approx([3 * us for us in times["llvmpipe"]], rel=1e-3)
    assert (out / "llvmpipe" / "serving.csv").is_file()
    assert not (out / "other" / "serving.csv").exists()
    one = tmp_path / "one"
    command = ["report", "--journal", str(two_devices), "--device", "oth", "--out", str(one)]
    assert main(command) == 0
    assert (one / "kernels.csv").read_bytes() == (out / "other" / "kernels.csv").read_bytes()


def test_two_devices_are_never_compared_as_one(two_devices):
    with pytest.raises(ReportError, match="llvmpipe, other, whose times do not mix"):
        read_side(str(two_devices), NOWHERE)
    assert read_side(f"{two_devices}@other", NOWHERE).kernels
    with pytest.raises(ReportError, match="none of nobody"):
        gather(two_devices, "nobody")


def test_a_bundle_of_another_device_is_refused(tmp_path):
    journal = write_lines(tmp_path / "j", [{**line, "device": "other"} for line in copy_lines()])
    bundle = Path(__file__).parents[2] / "tuned" / "llvmpipe"
    with pytest.raises(ReportError, match=r"records of other, but the bundle .* is of llvmpipe"):
        gather(journal, "llvmpipe", bundle)


def test_a_device_whose_name_is_a_path_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "j", [{**line, "device": "../../evil"} for line in copy_lines()])
    assert main(["report", "--journal", "j"]) == 1
    assert "'../../evil'" in one_line(capsys.readouterr().err, "kernelforge report: j: ")
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


def test_searches_without_a_winner_are_no_report_and_say_so(tmp_path):
    failed = [{**line, "outcome": "WRONG_RESULT", "median_ns": None} for line in copy_lines()]
    count = len(failed)
    with pytest.raises(NothingToReport, match=rf"not one of {count} .*\({count} WRONG_RESULT\)"):
        gather(write_lines(tmp_path / "j", failed), "elsewhere")


def test_one_devices_journal_does_not_spoil_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    root = tmp_path / "data" / "kernelforge" / "tuning"
    write_lines(root / "empty", [])
    write_lines(root / "good", copy_lines())
    assert main(["report"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == ["reports/good/report.html", "reports/index.html"]
    assert "empty is left out: nothing to report" in said.err
    keep(RECORDED, Path("reports/torn"))
    packed = Path("reports/torn/measured/journal.jsonl.gz")
    packed.write_bytes(packed.read_bytes()[:-9])
    before = Path("reports/good/report.html").read_bytes()
    Path("reports/good/report.html").unlink()
    assert main(["report", "--quiet"]) == 1
    assert "journal.jsonl.gz: damaged" in one_line(
        capsys.readouterr().err, "kernelforge report: torn: "
    )
    assert Path("reports/good/report.html").read_bytes() == before


def test_on_a_full_disk_every_file_of_the_old_report_stays(tmp_path):
    frame = gather(RECORDED, "llvmpipe")
    out = tmp_path / "out"
    paths = write_report(frame, out)
    before = {path: path.read_bytes() for path in paths}
    largest = max(map(len, before.values()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))  # as where space runs out
    try:
        with pytest.raises(ReportError, match="cannot be written: File too large"):
            write_report(replace(frame, kernels=frame.kernels[1:], name="new"), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_damaged_serving_and_formats_leave_the_rest(tmp_path):
    good = {"weights": "q8", "bundle": "b", "test": "tg8@2", "batch": 2, "unit": "tok/s",
            "samples": [2.0]}  # fmt: skip
    for change in ({"batch": 0}, {"unit": "h"}, {"samples": [10**400]}, {"test": 5}):
        append_serving(tmp_path / "bench.jsonl", "", "m", [{**good, **change}])
    append_serving(tmp_path / "bench.jsonl", "", "m", [good])
    assert [row.samples for row in serving_rows(tmp_path / "bench.jsonl")] == [(2.0,)]
    assert read_bench(tmp_path / "bench.jsonl") == ([], None)
    one = {
        "weights": "q8", "tok_per_s": 100.0, "weight_bytes": 1000, "perplexity": 2.5,
        "worse_percent": 0.1, "divergence": 0.001, "pareto": True, "recommended": True,
    }  # fmt: skip
    about = {"model": "m.pth", "text": "t", "formats": [{**one, "perplexity": None}, one]}
    (tmp_path / "pareto.json").write_text(json.dumps({"comparisons": [about]}))
    assert [row.perplexity for row in format_rows(tmp_path)] == [2.5]


def test_finals_in_a_row_take_time_in_proportion_to_their_number():
    final = next(m for m in read_journal(RECORDED / "journal.jsonl") if m.phase == "final")
    many = [replace(final, variant=f"copy/f32/VEC{i}") for i in range(20_000)]
    started = time.process_time()
    assert len(kernel_rows(many, (), None)) == 1
    assert time.process_time() - started < 3  # by pairs it is many times as long


def test_the_picture_of_a_very_long_search_stays_small_and_keeps_its_best():
    (row,) = kernel_rows([Measurement.from_json(line) for line in copy_lines()], (), None)
    times = [1000.0 + i % 7 for i in range(50_001)]
    times[12_345] = 10.0
    drawn = history(replace(row, history=(*times, math.nan)))
    assert drawn.count == 50_002
    assert drawn.trials.count("M") <= MOST_DOTS + 8 and drawn.best.count("V") == 1
    short = history(replace(row, history=(3.0, 2.0, 4.0, math.nan)))
    assert (short.trials.count("M"), short.failed.count("M")) == (3, 1)


def test_importance_looks_at_no_more_trials_than_it_says(monkeypatch):
    monkeypatch.setattr(parameters, "MOST_TRIALS", 40)
    random = Random(1)
    old = [Trial("N1", {"A": random.randrange(2), "B": 1 + i % 2}, 1.0 + i % 2)
           for i in range(200)]  # fmt: skip
    new = [Trial("N1", {"A": 1 + i % 2, "B": random.randrange(2)}, 1.0 + i % 2)
           for i in range(40)]  # fmt: skip
    assert importance([*old, *new])[0][0] == "A"
    assert importance(old)[0][0] == "B"
