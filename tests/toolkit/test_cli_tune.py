"""Tuning from the command line: a bundle comes out, an interrupt loses nothing."""

import json
import signal
import subprocess

import pytest

from kernelforge.cli.main import main
from kernelforge.tune.journal import read_journal
from tests.toolkit.cli_process import (
    DEVICE,
    command,
    environment,
    kernelforge,
    known_ceilings,
    tune_here,
    workplace,
)

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

TRIALS = 6


def test_tuning_a_model_writes_a_bundle_that_runs_it(tmp_path, capsys, monkeypatch):
    place = workplace()
    home = {**place.env, "XDG_DATA_HOME": str(tmp_path / "data")}
    journal = known_ceilings(tmp_path / "data" / "kernelforge" / "tuning" / DEVICE)
    # Here: a second of finals for each of thirty problems would be most of the test.
    code = tune_here(
        monkeypatch, "--model", place.model, "--trials", "1", "--seconds", "2", "--out", tmp_path,
        "--device", DEVICE, "--json", **home,
    )  # fmt: skip
    found = capsys.readouterr()
    assert code == 0, found.err
    told = json.loads(found.out)
    assert told["bundle"] == str(tmp_path / DEVICE)
    assert told["in_place"][0]["tuned_tok_per_s"] > 0
    assert {"gemv", "gemm", "wkv7"} <= {result["family"] for result in told["results"]}
    assert all(result["best_ns"] > 0 for result in told["results"])
    sharing = told["sharing"]
    assert 0 < sharing["after"] <= sharing["before"] <= sharing["problems"]
    assert 0 <= sharing["worst_loss"] <= 0.03
    assert read_journal(journal / "journal.jsonl")
    ran = kernelforge(
        "run", place.model, "Hi", "--tokens", "2", "--bundle", told["bundle"], "--json", **place.env
    )
    kinds = json.loads(ran.stdout)["stats"]["kernels"]
    assert not any("generic" in kind for kind in kinds)


def test_an_interrupted_search_keeps_what_it_has_and_the_same_command_goes_on(
    tmp_path, capsys, monkeypatch
):
    asked = [
        "--family", "layer_norm", "--problem", "T=64,C=512,X=32", "--device", DEVICE,
        "--trials", TRIALS, "--out", tmp_path / "out", "--journal", tmp_path / "journal",
    ]  # fmt: skip
    env = workplace().env
    seen = []
    with subprocess.Popen(
        command("tune", *asked),
        env=environment(**env),
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts tests in the background makes their children deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as child:
        for line in child.stderr or ():
            seen.append(line)
            if f"trial   2/{TRIALS}" in line:
                child.send_signal(signal.SIGINT)
    assert child.returncode == 130
    assert seen[-1].startswith("kernelforge tune: interrupted; 0 of 1 problems are finished")
    assert "the same command goes on" in seen[-1]
    journal = tmp_path / "journal" / "journal.jsonl"
    before = [m.variant for m in read_journal(journal)]
    assert len(before) >= 2
    assert not (tmp_path / "out" / DEVICE).exists()
    code = tune_here(monkeypatch, *asked, **env)
    again = capsys.readouterr().err
    assert code == 0, again
    assert f"trial   1/{TRIALS}" not in again
    assert f"trial   {TRIALS}/{TRIALS}" in again
    trials = [m.variant for m in read_journal(journal) if m.phase == "trial"]
    assert trials[: len(before)] == before
    assert len(trials) == len(set(trials)) == TRIALS
    assert (tmp_path / "out" / DEVICE / "manifest.json").is_file()


def test_winners_of_another_bundle_are_tried_first_and_counted(tmp_path, monkeypatch):
    place = workplace()
    asked = ["--family", "lerp", "--problem", "T=3,C=256,S=5,X=32", "--device", DEVICE]
    other = tmp_path / "other"
    code = tune_here(
        monkeypatch, *asked, "--trials", 3, "--in-process", "--out", other,
        "--journal", known_ceilings(tmp_path / "one"), **place.env,
    )  # fmt: skip
    assert code == 0
    found = kernelforge(
        "tune", *asked, "--trials", 3, "--journal", known_ceilings(tmp_path / "two"),
        "--out", tmp_path / "out", "--json",
        "--warm-start", other / DEVICE, place.tuned / "generic", **place.env,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)["results"][0]
    manifest = json.loads((other / DEVICE / "manifest.json").read_bytes())
    winners = {entry["variant"] for entry in manifest["entries"]}
    tried = [m.variant for m in read_journal(tmp_path / "two" / "journal.jsonl")]
    assert winners <= set(tried)
    assert result["warm_trials"] == len(winners - {result["default_variant"]})
    assert result["outcomes"] == {"OK": 3}


def test_a_folder_that_is_no_bundle_is_told_before_anything_is_measured(tmp_path):
    found = kernelforge(
        "tune", "--family", "lerp", "--device", DEVICE, "--warm-start", tmp_path,
        "--journal", tmp_path / "journal", **workplace().env,
    )  # fmt: skip
    assert found.returncode == 1
    assert found.stderr.startswith(f"kernelforge tune: --warm-start {tmp_path}: ")
    assert found.stderr.count("\n") == 1
    assert not list((tmp_path / "journal").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (["--problem", "T=3"], 2, "--problem T3: lerp needs the dimensions "),
        (["--storage", "nothing://here"], 1, "cannot open tuning storage nothing://here: "),
    ],
)
def test_what_was_mistyped_is_told_before_anything_is_measured(
    tmp_path, given, code, says, capsys, monkeypatch
):
    workplace()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    asked = ["tune", "--family", "lerp", "--device", DEVICE, "--out", str(tmp_path), *given]
    assert main(asked) == code
    assert capsys.readouterr().err.startswith(f"kernelforge tune: {says}")
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(("kind", "says"), [("link", "is a link"), ("file", "is a file")])
def test_a_place_where_no_bundle_can_be_put_is_told_before_anything_is_measured(
    tmp_path, kind, says, capsys
):
    workplace()
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / DEVICE
    if kind == "link":
        taken.symlink_to(tmp_path)
    else:
        taken.touch()
    asked = ["tune", "--family", "lerp", "--device", DEVICE, "--out", str(tmp_path / "out")]
    assert main([*asked, "--journal", str(tmp_path / "journal")]) == 1
    assert f"{taken} {says}" in capsys.readouterr().err
    assert not (tmp_path / "journal").exists()
