"""Tuning from the command line: a bundle comes out, an interrupt loses nothing."""

import json
import signal
import subprocess

import pytest

from kernelforge.tune.journal import read_journal
from tests.toolkit.cli_process import DEVICE, command, environment, kernelforge, workplace

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

TRIALS = 6


def test_tuning_a_model_writes_a_bundle_that_runs_it(tmp_path):
    place = workplace()
    found = kernelforge(
        "tune", "--model", place.model, "--trials", "1", "--seconds", "2", "--out", tmp_path,
        "--device", DEVICE, "--json", **{**place.env, "XDG_DATA_HOME": str(tmp_path / "data")},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["bundle"] == str(tmp_path / DEVICE)
    assert told["in_place"][0]["tuned_tok_per_s"] > 0
    assert {"gemv", "gemm", "wkv7"} <= {result["family"] for result in told["results"]}
    assert all(result["best_ns"] > 0 for result in told["results"])
    sharing = told["sharing"]
    assert 0 < sharing["after"] <= sharing["before"] <= sharing["problems"]
    assert 0 <= sharing["worst_loss"] <= 0.03
    assert read_journal(tmp_path / "data" / "kernelforge" / "tuning" / DEVICE / "journal.jsonl")
    ran = kernelforge(
        "run", place.model, "Hi", "--tokens", "2", "--bundle", told["bundle"], "--json", **place.env
    )
    kinds = json.loads(ran.stdout)["stats"]["kernels"]
    assert not any("generic" in kind for kind in kinds)


def test_an_interrupted_search_keeps_what_it_has_and_the_same_command_goes_on(tmp_path):
    asked = [
        "tune", "--family", "layer_norm", "--problem", "T=64,C=512,X=32", "--device", DEVICE,
        "--trials", TRIALS, "--out", tmp_path / "out", "--journal", tmp_path / "journal",
    ]  # fmt: skip
    env = environment(**workplace().env)
    seen = []
    with subprocess.Popen(
        command(*asked),
        env=env,
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
    again = subprocess.run(command(*asked), env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"trial   1/{TRIALS}" not in again.stderr
    trials = [m.variant for m in read_journal(journal) if m.phase == "trial"]
    assert trials[: len(before)] == before
    assert len(trials) == len(set(trials)) == TRIALS
    assert (tmp_path / "out" / DEVICE / "manifest.json").is_file()


def test_winners_of_another_bundle_are_tried_first_and_counted(tmp_path):
    place = workplace()
    asked = ["tune", "--family", "lerp", "--problem", "T=3,C=256,S=5,X=32", "--device", DEVICE]
    other = tmp_path / "other"
    made = kernelforge(
        *asked, "--trials", 3, "--in-process", "--journal", tmp_path / "one", "--out", other,
        **place.env,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    found = kernelforge(
        *asked, "--trials", 3, "--journal", tmp_path / "two", "--out", tmp_path / "out", "--json",
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
