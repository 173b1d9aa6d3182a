"""The choice of a weight format: the front holds what nothing beats, and the rule is kept."""

import json
import math
import random

import numpy as np
import pytest

from kernelforge.cli.pareto import divergence, log_probabilities
from kernelforge.errors import TuneError
from kernelforge.tune.pareto import Point, find_front, recommend
from tests.toolkit.cli_process import DEVICE, kernelforge, workplace


def point(name: str, speed: float, size: int, worse: float, apart: float) -> Point:
    return Point(name, speed, 0.01, size, 5.0, worse, apart)


def beats(one: Point, other: Point) -> bool:
    a = (-one.values[0], *one.values[1:])
    b = (-other.values[0], *other.values[1:])
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_format_beats_in_all_three(seed) -> None:
    rng = random.Random(seed)
    names = ["f32", "bf16", "f16", "q8", "nf4"]
    points = {
        n: point(n, rng.randint(1, 4), rng.randint(1, 4), rng.random(), rng.randint(0, 3))
        for n in names
    }
    front = find_front(names, points.__getitem__, 1.0)
    assert set(front.best) == {
        n for n in names if not any(beats(points[o], points[n]) for o in names)
    }
    assert front.points == tuple(points[n] for n in names)
    assert front.recommended in front.best


def test_the_fastest_that_loses_little_is_recommended_and_of_equals_the_smallest() -> None:
    f16 = point("f16", 100, 20, 0.0, 0.0)
    q8 = point("q8", 150, 11, 0.4, 0.01)
    nf4 = point("nf4", 200, 6, 4.0, 0.2)
    assert recommend([f16, q8, nf4]) == "q8"
    assert recommend([f16, q8, nf4], most_worse=5.0) == "nf4"
    assert recommend([f16, point("q8", 98, 11, 0.4, 0.01)]) == "q8"  # as fast, and smaller
    assert recommend([f16, point("q8", 96, 11, 0.4, 0.01)]) == "f16"
    assert recommend([nf4, point("other", 300, 5, 9.0, 0.5)]) == "nf4"  # none is good: the truest


def test_a_format_that_cannot_be_measured_is_left_out_and_said() -> None:
    def measure(name: str) -> Point:
        if name == "f32":
            raise TuneError("too large\nfor this device")
        return point(name, math.nan if name == "bf16" else 10, 5, 0.0, 0.0)

    front = find_front(["f32", "bf16", "f16"], measure, 1.0)
    assert [p.weights for p in front.points] == ["f16"]
    assert front.failed["f32"] == "too large for this device"
    assert "no finite number" in front.failed["bf16"]
    with pytest.raises(TuneError, match="no format could be measured: f32: too large"):
        find_front(["f32"], measure, 1.0)


def test_the_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 11)).astype(np.float32)
    p = np.exp(a.astype(np.float64)) / np.exp(a.astype(np.float64)).sum(-1, keepdims=True)
    q = np.exp(b.astype(np.float64)) / np.exp(b.astype(np.float64)).sum(-1, keepdims=True)
    found = divergence(log_probabilities(a), log_probabilities(b))
    assert found == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert divergence(log_probabilities(a), log_probabilities(a + 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_command_measures_each_format_and_keeps_the_comparison(tmp_path) -> None:
    place = workplace()
    (tmp_path / "text.txt").write_text("In the beginning was the word, and the word was 32 bits.")
    done = kernelforge(
        "tune", "--objective", "pareto", "--model", place.model, "--text", tmp_path / "text.txt",
        "--weights", "f32,q8", "--device", DEVICE, "--journal", tmp_path, "--json", **place.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    full, eight = told["formats"]
    assert (full["weights"], full["divergence"], full["worse_percent"]) == ("f32", 0.0, 0.0)
    assert eight["weight_bytes"] < full["weight_bytes"]
    assert 0 < eight["divergence"] < 1
    assert eight["pareto"]
    assert full["pareto"]  # it is the truest
    assert min(full["tok_per_s"], eight["tok_per_s"]) > 0
    assert told["recommended"] in ("f32", "q8")
    kept = json.loads((tmp_path / "pareto.json").read_text())["comparisons"]
    assert [c["formats"] for c in kept] == [told["formats"]]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--objective", "pareto"], "give --model FILE (or --shape) and --text FILE"),
        (["--text", "x", "--family", "gemv"], "are of --objective pareto"),
        (["--objective", "pareto", "--model", "m", "--text", "t", "--most-worse", "-1"],
         "per cent from 0 up"),
    ],
)  # fmt: skip
def test_wrong_options_of_the_choice_are_one_line(asked, told) -> None:
    done = kernelforge("tune", *asked)
    assert done.returncode == 2
    assert told in done.stderr
