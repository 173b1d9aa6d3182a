"""Problems never tuned: drawn like other models', judged against a search of their own."""

import json
import math

import pytest

from kernelforge.families import load_families
from kernelforge.measure.statistics import Interval
from kernelforge.tune.untuned import FAR, Judged, draw, summary
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import read_manifest
from kernelforge_runtime.resources import tuned_output_dir
from tests.toolkit.cli_process import DEVICE, kernelforge, tune_here, workplace


def entries():
    folder = tuned_output_dir() / "generic"
    if not folder.is_dir():
        pytest.skip(f"no generic bundle in {folder}")
    return read_manifest(folder).entries


def test_drawn_problems_are_possible_and_far_from_all_that_was_tuned() -> None:
    known, families = entries(), load_families()
    drawn = draw(known, families.__getitem__, 30, seed=1)
    assert len(drawn) == 30
    assert len({one.family.name for one in drawn}) > 5
    for one in drawn:
        assert one.family.refuses(one.problem) is None
        assert one.like.signature.serves(one.problem)
        alike = [
            e.problem for e in known
            if (e.family, e.precision) == (one.family.name, one.precision)
        ]  # fmt: skip
        assert min(one.problem.distance(p) for p in alike) >= FAR
    keys = [(one.family.name, one.precision, one.problem) for one in drawn]
    assert len(set(keys)) == 30
    again = draw(known[::-1], families.__getitem__, 30, seed=1)
    assert [(o.family.name, o.precision, o.problem) for o in again] == keys


def test_nothing_is_drawn_from_nothing() -> None:
    assert draw((), load_families().__getitem__, 3, seed=0) == []


def judged(size: int, ratio: float) -> Judged:
    one = Problem(M=size, K=64)
    return Judged("gemv", "f16", one, one, "a", "b", ratio, 1, Interval(ratio, ratio, ratio), 9)


def test_the_summary_tells_the_mean_and_the_worst() -> None:
    text = summary([judged(32, 1.0), judged(64, 4.0), judged(96, math.nan)])
    assert text.startswith("2 problems never tuned: the runtime's choice takes 2.00 times")
    assert "1 of them at most 1.03 times; the worst is gemv f16 M64.K64, 4.00 times" in text
    assert summary([]) == "no problem could be compared"


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_command_compares_the_runtimes_choice_with_a_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "--untuned", "2", "--family", "layer_norm", "--trials", "3", "--device", DEVICE
    code = tune_here(monkeypatch, *asked, "--json", **workplace().env)
    found = capsys.readouterr()
    assert code == 0, found.err
    told = json.loads(found.out)
    assert len(told["problems"]) == 2
    for one in told["problems"]:
        assert one["chosen_ns"] > 0
        assert one["best_ns"] > 0
        assert one["trials"] == 3
        assert one["problem"] != one["nearest"]
        assert one["ratio_low"] <= one["ratio"] <= one["ratio_high"]


def test_given_problems_do_not_go_with_drawn_ones() -> None:
    done = kernelforge("tune", "--untuned", "2", "--family", "gemv", "--problem", "M=32,K=32")
    assert done.returncode == 2
    assert "--untuned draws its problems" in done.stderr
