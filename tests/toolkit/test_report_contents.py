"""What a report tells besides its numbers: how to make them again, and what is not in it."""

import json
import math
import resource
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge.cli.bench_peers import Absent
from kernelforge.cli.main import parser_of
from kernelforge.errors import ReportError
from kernelforge.report import figures, write_report
from kernelforge.report.bench_journal import LEFT_OUT, append_bench, read_bench
from kernelforge.report.family_figures import format_charts
from kernelforge.report.formats import FormatRow
from kernelforge.report.frame import gather
from kernelforge.report.html import render_page
from kernelforge.report.serving import append_serving
from kernelforge.report.tables import tables
from tests.toolkit.test_forged_journals import copy_lines, write_lines
from tests.toolkit.test_report import record

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"


class Silent:
    """An output that nobody reads."""

    def note(self, text):
        pass


@pytest.fixture
def journal(tmp_path):
    """Benches of two formats with a peer, serving and a comparison of formats."""
    folder = write_lines(tmp_path / "somewhere", copy_lines())
    name = "-my; model"
    ours = [
        record(model=name, weights=weights, test=test, pair="t")
        for weights in ("f16/f16", "q8/f16")
        for test in ("pp8", "tg8")
    ]
    mixed = record(model=name, weights="0:q8,head:f16,emb:f16", test="tg4")
    peer = record(model="x", weights="f32", bundle="rwkv 1", peer="rwkv", pair="t", test="pp8")
    append_bench(folder / "bench.jsonl", [*ours, peer, mixed])
    rows = [
        {"weights": "q8", "bundle": "llvmpipe", "test": test, "batch": batch, "unit": unit,
         "samples": [1.0, 2.0]}
        for test, batch, unit in (("tg16@1", 1, "tok/s"), ("tg16@4", 4, "tok/s"),
                                  ("first-token", 1, "s"), ("tg@10", 1, "tok/s"),
                                  ("tg@5000", 1, "tok/s"))
    ]  # fmt: skip
    append_serving(folder / "bench.jsonl", "2026-01-01T00:00:00Z", "random-L1.C64.V256", rows)
    one = {
        "weights": "q8",
        "tok_per_s": 100.0,
        "weight_bytes": 1000,
        "perplexity": 2.5,
        "worse_percent": 0.1,
        "divergence": 0.001,
        "pareto": True,
        "recommended": True,
    }
    about = {"model": "m.pth", "text": "a text.txt", "formats": [one]}
    (folder / "pareto.json").write_text(json.dumps({"comparisons": [about]}))
    return folder


def test_every_command_of_a_report_is_one_that_can_be_typed(journal):
    lines = gather(journal, "somewhere").commands
    verbs = {"bench": parser_of("bench")[0], "tune": parser_of("tune")[0],
             "report": parser_of("report")[0]}  # fmt: skip
    found = []
    for line in lines:
        program, verb, *arguments = shlex.split(line)
        assert program == "kernelforge"
        found.append((verb, verbs[verb].parse_intermixed_args(arguments)))
    assert [verb for verb, _ in found] == ["tune", "bench", "bench", "bench", "tune", "report"]
    args = [parsed for _, parsed in found]
    assert args[1].model == "./-my; model.safetensors" and args[1].activations == "f16"
    assert args[1].weights == ("f16", "q8") and args[1].peer == ("rwkv",)
    assert (args[1].pp, args[1].tg, args[1].reps) == ((8,), (8,), 3)
    assert args[2].quant == "0:q8,head:f16,emb:f16" and args[2].tg == (4,)
    assert args[3].shape == "L1.C64.V256" and (args[3].batch, args[3].long) == ((1, 4), 5000)
    assert args[3].first_token and args[3].tg == (16,)
    assert (args[4].objective, args[4].text, args[4].model) == ("pareto", "a text.txt", "m.pth")


def test_formats_are_drawn_by_speed_with_what_they_cost():
    rows = [
        FormatRow("m", "t", name, speed, 1e6, 2.0, worse, 0.1, pareto, pareto)
        for name, speed, worse, pareto in (("f16", 50.0, 0.0, False), ("q8", 100.0, 0.5, True))
    ]
    (chart,) = format_charts(rows)
    assert [(row.head, row.bars[0].end, row.bars[0].text) for row in chart.rows] == [
        ("f16", "36.00", "50.0"), ("q8", "72.00", "100.0"),
    ]  # fmt: skip
    assert chart.rows[1].label == "recommended" and chart.rows[1].remark == "1.000 MB, +0.50 %"


def test_peers_that_were_left_out_are_listed_without_anybodys_folders(journal, tmp_path):
    absent = Absent(Silent())
    absent.add("web-rwkv", "/opt/peers/bin/python: cannot be started: No such file")
    absent.add("llama.cpp", "in f16: it runs <rwkv6>, rwkv7")
    append_bench(journal / "bench.jsonl", [], None, absent.record("2026-01-01T00:00:00Z", "m"))
    frame = gather(journal, "somewhere")
    assert frame.left_out == (
        ("web-rwkv", "python: cannot be started: No such file"),
        ("llama.cpp", "in f16: it runs <rwkv6>, rwkv7"),
    )
    write_report(frame, tmp_path / "out")
    assert "it runs &lt;rwkv6&gt;, rwkv7" in (tmp_path / "out" / "report.html").read_text()
    assert "cannot be started" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "left_out.csv").read_text().count("\n") == 3
    append_bench(journal / "bench.jsonl", [], None, Absent(Silent()).record("", "m"))
    assert "left_out" not in [table.name for table in tables(gather(journal, "somewhere"))]
    append_bench(journal / "bench.jsonl", [], None, {LEFT_OUT: {"model": "m", "peers": 7}})
    assert gather(journal, "somewhere").left_out == ()


def test_problems_without_a_winner_are_counted(tmp_path):
    lost = [{**line, "problem": "N999", "outcome": "WRONG_RESULT", "median_ns": None}
            for line in copy_lines()[:2]]  # fmt: skip
    facts = dict(gather(write_lines(tmp_path, [*copy_lines(), *lost]), "elsewhere").provenance)
    assert facts["Without a winner"] == "1 problem: 2 WRONG_RESULT"
    assert "Without a winner" not in dict(gather(RECORDED, "llvmpipe").provenance)


def test_a_bench_that_finds_the_disk_full_leaves_the_journal_whole(tmp_path):
    path = tmp_path / "bench.jsonl"
    append_bench(path, [record()])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))  # a part still fits
    try:
        with pytest.raises(ReportError, match=r"cannot write .*: File too large"):
            append_bench(path, [record(test="tg9")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [r.test for r in read_bench(path)[0]] == ["tg8"]


def test_many_kernels_are_shown_by_family_and_each_on_demand():
    few = gather(RECORDED, "llvmpipe")
    assert figures.family_speedups(few) is None and figures.family_shares(few) is None
    most = figures.MOST_BARS // len(few.kernels) + 1
    many = replace(few, kernels=[row for row in few.kernels for _ in range(most)])
    names = list(dict.fromkeys(f"{row.family} {row.precision}" for row in few.kernels))
    for chart in (figures.family_speedups(many), figures.family_shares(many)):
        assert [row.head for row in chart.rows] == [n for n in names if n in str(chart.rows)]
    one = [row.speedup for row in few.kernels if f"{row.family} {row.precision}" == names[0]]
    mean = math.exp(math.fsum(map(math.log, one)) / len(one))
    assert figures.family_speedups(many).rows[0].bars[0].text == f"{mean:.2f}×"
    page = render_page(many, tables(many))
    assert page.count("<summary>Each of the ") == 2
