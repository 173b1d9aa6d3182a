"""Two sets of measurements held against each other: no device, nothing measured."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from kernelforge.cli.main import main
from kernelforge.errors import ReportError
from kernelforge.report import write_report
from kernelforge.report.compare import Side, compare, read_side
from kernelforge.report.compare.sides import Timing
from kernelforge.report.frame import gather
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
        (("--compare", RECORDED, TUNED), 1, "no kernel or model test in common"),
        (("--compare", RECORDED, RECORDED, "--device", "x"), 2, "takes no DEVICE"),
    ],
)
def test_wrong_use_is_one_line(arguments, code, said, tmp_path, capsys):
    assert main(["report", *map(str, arguments), "--out", str(tmp_path / "out")]) == code
    assert said in one_line(capsys.readouterr().err, "kernelforge report: ")
    assert not (tmp_path / "out").exists()
