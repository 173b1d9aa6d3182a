"""Two sets of measurements held against each other: no device, nothing measured."""

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from kernelforge.cli.main import main
from kernelforge.errors import ReportError
from kernelforge.report import write_report
from kernelforge.report.compare import Side, compare, read_side, sides
from kernelforge.report.compare.pages import sentences
from kernelforge.report.compare.timing import Timing
from kernelforge.report.frame import gather
from kernelforge_runtime.bundle import read_manifest
from tests.toolkit.cli_process import kernelforge, one_line

RECORDED = Path(__file__).parent / "fixtures" / "tuning" / "llvmpipe"
TUNED = Path(__file__).parents[2] / "tuned" / "llvmpipe"
NOWHERE = Path("/nonexistent")
SLOWED = ("gemv", "f16")


def a_run(seed, count=60, rounds=5, within=0.03, between=0.01, slowed=()):
    """Times of kernels that are always the same ones, with noise of two kinds."""
    true, noise = random.Random(0), random.Random(seed)
    found = {}
    for i in range(count):
        time = 10 ** true.uniform(3, 6) * math.exp(noise.gauss(0, between))
        time *= 1.2 if i in slowed else 1.0
        samples = [time * math.exp(abs(noise.gauss(0, within))) for _ in range(rounds)]
        middle = median(samples)
        spread = median([abs(x - middle) for x in samples]) / middle
        found["f", "f16", f"N{i}"] = Timing(f"f f16 N{i}", middle, spread, rounds, "V1", "")
    return Side(str(seed), found)


@pytest.fixture(scope="module")
def slowed_journal(tmp_path_factory):
    """The recorded journal with one kernel's last round 20 % slower."""
    folder = tmp_path_factory.mktemp("slowed") / "llvmpipe"
    shutil.copytree(RECORDED, folder)
    lines = (folder / "journal.jsonl").read_text().splitlines()
    for i, line in enumerate(lines):
        found = json.loads(line)
        if (found["family"], found["precision"]) == SLOWED and found["phase"] == "final":
            found["median_ns"] *= 1.2
            found["samples_ns"] = [1.2 * ns for ns in found["samples_ns"]]
            lines[i] = json.dumps(found)
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_noise_between_two_runs_is_no_difference(seed):
    found = compare(a_run(2 * seed + 1), a_run(2 * seed + 2))
    assert not found.slower and not found.faster
    assert not [t for t in found.together if t.verdict]


@pytest.mark.parametrize("seed", range(5))
def test_one_kernel_slower_by_a_fifth_is_found_among_sixty(seed):
    found = compare(a_run(2 * seed + 1), a_run(2 * seed + 2, slowed=(7,)))
    assert [row.name for row in found.slower] == ["f f16 N7"]
    assert found.failures(0.05) == ["f f16 N7"] and not found.failures(0.5)


def test_it_says_how_small_a_change_would_have_been_seen():
    noisy, quiet = (
        next(text for text in sentences(compare(a_run(1, within=w), a_run(2, within=w)))
             if "would be beyond noise" in text)
        for w in (0.2, 0.01)
    )  # fmt: skip
    least = [float(re.search(r"slowdown of (\d+) %", text)[1]) for text in (noisy, quiet)]
    assert least[0] > 40 and 3 < least[1] < 12
    found = compare(a_run(1, within=0.01), a_run(2, within=0.01, slowed=(3,)))
    assert 100 * (found.slower[0].ratio - 1) > least[1]


def test_what_slows_everything_is_found_too():
    slow = a_run(2, slowed=range(60))
    found = compare(a_run(1), slow)
    assert found.together[0].verdict == "slower"
    assert len(found.slower) > 40
    assert "all kernels together" in found.failures(0.05)


def test_a_device_whose_ceilings_fell_as_much_is_no_regression():
    first, second = a_run(1), a_run(2, slowed=range(60))
    first.ceilings = {"read_gbps": 12.0, "copy_gbps": 14.0, "fma_gflops": 40.0}
    second.ceilings = {name: value / 1.2 for name, value in first.ceilings.items()}
    assert not compare(first, second).failures(0.05)
    second.facts = {"driver": "newer"}
    first.facts = {"driver": "older"}
    assert compare(first, second).failures(0.05)  # it may be the driver's doing


def slowed_copy(folder, chosen, fields=("median_ns", "spread_ns", "samples_ns")):
    """The recorded journal, with these records 20 % slower."""
    folder.mkdir()
    lines = [json.loads(line) for line in (RECORDED / "journal.jsonl").read_text().splitlines()]
    for line in filter(chosen, lines):
        for field in fields:
            old = line[field]
            line[field] = [1.2 * ns for ns in old] if isinstance(old, list) else 1.2 * (old or 0)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "journal.jsonl").write_text(text)
    return read_side(str(folder), NOWHERE)


@pytest.mark.parametrize("fields", [("median_ns", "spread_ns", "samples_ns"), ("median_ns",)])
def test_any_kernel_slowed_in_a_copy_of_a_journal_is_found_however_few_samples(tmp_path, fields):
    journal = read_side(str(RECORDED), NOWHERE)
    assert len(journal.kernels) < 10 and min(t.samples for t in journal.kernels.values()) < 10
    for n, (key, timing) in enumerate(journal.kernels.items()):
        for where in ("problem", "winner"):
            other = slowed_copy(
                tmp_path / f"{n}{where}",
                lambda line, timing=timing, where=where: (
                    timing.name == f"{line['family']} {line['precision']} {line['problem']}"
                    and (where == "problem" or line["variant"].endswith(timing.what))
                ),
                fields,
            )
            found = compare(journal, other)
            assert [row.name for row in found.slower] == [timing.name], (key, where)
            assert found.failures(0.15) == [timing.name] and not found.failures(0.25)


def test_any_kernel_or_layout_slowed_in_a_bundle_is_found(monkeypatch):
    manifest = read_manifest(TUNED)
    before = read_side(str(TUNED), NOWHERE)
    for at in random.Random(1).sample(range(len(manifest.entries)), 3):
        entries = list(manifest.entries)
        entries[at] = replace(entries[at], median_ns=int(1.2 * entries[at].median_ns))
        slowed = replace(manifest, entries=tuple(entries))
        monkeypatch.setattr(sides, "read_manifest", lambda _, slowed=slowed: slowed)
        [row] = compare(before, read_side(str(TUNED), NOWHERE)).slower
        assert row.name.startswith(f"{entries[at].family} {entries[at].precision} ")
        assert row.steady == pytest.approx(1.2, abs=1e-3)


def test_any_row_slowed_in_a_copy_of_a_report_is_found(tmp_path):
    write_report(gather(RECORDED, "llvmpipe"), tmp_path)
    first, second = (read_side(str(tmp_path), NOWHERE) for _ in range(2))
    for times in (second.kernels, second.models):
        for key, timing in list(times.items()):
            times[key] = replace(timing, value=1.2 * timing.value)
            assert [row.name for row in compare(first, second).slower] == [timing.name]
            times[key] = timing


def shifted(seed, count, by):
    """A run of a busy machine: each kernel, and the default beside it, met another state of it."""
    side, state = a_run(seed, count), random.Random(seed)
    for key, timing in side.kernels.items():
        away = math.exp(state.gauss(0, by))
        value = timing.value * away
        beside = 3.3 * a_run(0, count, within=0, between=0).kernels[key].value
        side.kernels[key] = replace(timing, value=value, beside=beside * away)
    return side


def test_a_handful_of_kernels_on_a_busy_machine_raises_no_alarm():
    alarms = [compare(shifted(2 * s, 5, 0.15), shifted(2 * s + 1, 5, 0.15)) for s in range(1, 41)]
    assert sum(bool(found.slower or found.failures(0)) for found in alarms) <= 2


def test_rows_that_were_not_measured_again_do_not_pass_for_a_quiet_machine():
    first, second = a_run(1, between=0.1), a_run(2, between=0.1)
    assert not compare(first, second).slower
    for i in range(25):  # fewer than half: no copy
        second.kernels["f", "f16", f"N{i}"] = first.kernels["f", "f16", f"N{i}"]
    assert not compare(first, second).slower


def test_what_the_default_beside_it_suffered_too_was_the_machine():
    first, second = shifted(1, 40, 0.15), shifted(2, 40, 0.15)
    slow = second.kernels["f", "f16", "N7"]
    second.kernels["f", "f16", "N7"] = replace(slow, value=1.2 * slow.value)
    assert [row.name for row in compare(first, second).slower] == ["f f16 N7"]
    for side in (first, second):  # without the defaults nobody could tell
        side.kernels = {k: replace(t, beside=math.nan) for k, t in side.kernels.items()}
    assert not compare(first, second).slower


def test_a_default_that_became_faster_makes_no_kernel_slower():
    first, second = a_run(1), a_run(2)
    for side, times in ((first, 3.0), (second, 2.0)):
        for i, (key, timing) in enumerate(side.kernels.items()):
            beside = timing.value * (times if i == 7 else 3.0)
            side.kernels[key] = replace(timing, beside=beside)
    assert not compare(first, second).slower


def test_both_directions_are_told_apart():
    found = compare(a_run(1, slowed=(7,)), a_run(2))
    assert [row.name for row in found.faster] == ["f f16 N7"] and not found.slower


def test_a_bundle_with_one_slower_kernel_is_found():
    first, second = (read_side(str(TUNED), NOWHERE) for _ in range(2))
    key = next(key for key in second.kernels if key[0] == "wkv7")
    assert len(first.kernels) > 50 and not compare(first, second).failures(0.0)
    slow = second.kernels[key]
    second.kernels[key] = replace(slow, value=1.2 * slow.value)
    found = compare(first, second)
    assert [row.name for row in found.slower] == [slow.name]


def test_a_report_and_its_journal_say_the_same(tmp_path):
    write_report(gather(RECORDED, "llvmpipe"), tmp_path)
    journal, report = read_side(str(RECORDED), NOWHERE), read_side(str(tmp_path), NOWHERE)
    assert journal.kernels.keys() == report.kernels.keys()
    assert journal.models.keys() == report.models.keys()
    for key, timing in journal.kernels.items():
        other = report.kernels[key]
        assert (other.name, other.samples) == (timing.name, timing.samples)
        assert other.value == pytest.approx(timing.value, abs=6)
    found = compare(journal, report)
    assert found.rows and not found.slower and not found.faster


def test_records_of_one_driver_can_be_picked(tmp_path):
    shutil.copytree(RECORDED, tmp_path / "j")
    lines = (RECORDED / "journal.jsonl").read_text().splitlines()
    newer = [line.replace("Mesa 25.0.7", "Mesa 26.1.0") for line in lines]
    (tmp_path / "j" / "journal.jsonl").write_text("\n".join([*lines, *newer]) + "\n")
    side = read_side(f"{tmp_path / 'j'}@26.1.0", NOWHERE)
    assert side.kernels and "26.1.0" in side.facts["driver"] and "25" not in side.facts["driver"]
    with pytest.raises(ReportError, match="no times"):
        read_side(f"{tmp_path / 'j'}@9.9", NOWHERE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("family,precision,problem,median_us\ngemv,f16,M1,fast\n", "line 2: median_us is 'fast'"),
        ("family,precision,problem,median_us\ngemv,f16,M1,-3\n", "median_us is '-3'"),
        ("family,precision,problem,median_us\ngemv,f16,M1,nan\n", "median_us is 'nan'"),
        ("a,b\n1,2\n", "line 2: no family"),
        ("family,precision,problem,median_ms\ngemv,f16,M1,2\n", "line 2: no median_us"),
        ("family,precision,problem,median_us\ngemv,f16,M1,1e300\n", "median_us is '1e300'"),
        ("", "no times in it"),
    ],
)
def test_a_csv_that_is_no_reports_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "kernels.csv").write_text(content)
    with pytest.raises(ReportError, match=r"\A[^\n]*\Z") as caught:
        read_side(str(tmp_path), NOWHERE)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["nobody", "--all", "HEAD:../..", ":", "@", "", "x@y", "a b"])
def test_what_is_no_side_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReportError, match="--compare"):
        read_side(name, NOWHERE)


def test_missing_and_changed_kernels_are_counted_not_judged():
    first, second = a_run(1), a_run(2)
    del first.kernels["f", "f16", "N3"]
    second.kernels["f", "f16", "N4"] = replace(second.kernels["f", "f16", "N4"], what="V2")
    found = compare(first, second)
    assert found.only_second == ("f f16 N3",) and not found.only_first
    assert [row.name for row in found.rows if row.changed] == ["f f16 N4"]


def test_command_fails_above_the_limit_and_writes_all_three_files(slowed_journal, tmp_path):
    command = ("report", "--compare", RECORDED, slowed_journal, "--out", tmp_path, "--fail-above")
    done = kernelforge(*command, "5%")
    assert done.returncode == 1
    assert "gemv f16" in one_line(done.stderr, "kernelforge report: slower by more than 5 %")
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert '<tr class="slower"><td>kernel</td><td>gemv f16' in page.replace("\n", "")
    assert "1.200" in (tmp_path / "compare.csv").read_text()
    assert "**gemv f16" in (tmp_path / "compare.md").read_text()
    before = page
    done = kernelforge(*command, "30 %", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failed"] == []
    assert before.count("<tr") == (tmp_path / "compare.html").read_text().count("<tr")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--fail-above", "5"), 2, "--fail-above is of --compare"),
        (("--compare", RECORDED, TUNED), 2, "no kernel or model test in common"),
        (("--compare", RECORDED, NOWHERE), 2, "no such folder"),
        (
            ("--compare", RECORDED, RECORDED / "journal.jsonl", "--device", "x"),
            2,
            "takes no DEVICE",
        ),
        (("--compare", RECORDED, RECORDED, "--device", "x"), 2, "takes no DEVICE"),
    ],
)
def test_wrong_use_is_one_line(arguments, code, said, tmp_path, capsys):
    assert main(["report", *map(str, arguments), "--out", str(tmp_path / "out")]) == code
    assert said in one_line(capsys.readouterr().err, "kernelforge report: ")
    assert not (tmp_path / "out").exists()


def test_the_last_decimal_of_a_table_is_no_difference(tmp_path):
    head = "family,precision,problem,variant,median_us,spread_percent,samples\n"
    for name, digits in (("a", ("0.01", "50.00")), ("b", ("0.02", "70.00"))):
        (tmp_path / name).mkdir()
        rows = [f"f,f16,N{i},V,{us},0.0,15\n" for i, us in enumerate(digits)]
        (tmp_path / name / "kernels.csv").write_text(head + "".join(rows))
    found = compare(*(read_side(str(tmp_path / name), NOWHERE) for name in ("a", "b")))
    assert [row.name for row in found.slower] == ["f f16 N1"]


def test_a_report_knows_its_device_by_the_name_that_journals_have(tmp_path):
    write_report(gather(RECORDED, "llvmpipe"), tmp_path)
    facts = [read_side(str(place), NOWHERE).facts for place in (RECORDED, tmp_path)]
    assert facts[0]["device"] == facts[1]["device"] == "llvmpipe"
    assert facts[0]["driver"] == facts[1]["driver"]


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [
        ("5%", 1, "by more than 5 % and beyond"),
        ("5", 1, "by more than 5 % and beyond"),
        ("0.05", 1, "0.05 is 0.05 per cent"),
        ("0", 1, "by more than 0 % and beyond"),
        ("25 %", 0, ""),
        ("-1", 2, "'-1' is no percentage"),
        ("abc", 2, "'abc' is no percentage"),
        ("", 2, "'' is no percentage"),
        ("nan%", 2, "'nan%' is no percentage"),
        ("inf", 2, "'inf' is no percentage"),
        ("5%%", 2, "'5%%' is no percentage"),
    ],
)
def test_limits_are_percentages(slowed_journal, tmp_path, capsys, limit, code, said):
    sides = (str(RECORDED), str(slowed_journal))
    command = ["report", "--compare", *sides, "--out", str(tmp_path), "--fail-above", limit]
    assert main(command) == code
    assert said in capsys.readouterr().err
