"""Recorded spaces: read in every form, searched again, scored against random sampling."""

import gzip
import importlib.util
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from kernelforge.errors import PeerError, TuneError
from kernelforge.peers.searches import kernel_tuner_searches
from kernelforge.tune.finished_runs import FinishedRun, FinishedRuns
from kernelforge.tune.plain_optuna import replay_optuna
from kernelforge.tune.recorded import RecordedSpace, write_cache, write_t4
from kernelforge.tune.recorded_forms import read_space
from kernelforge.tune.replay import expected_best, replay, score, summarise, window
from tests.toolkit.cli_process import NO_VULKAN, kernelforge

SPACES = Path(__file__).parents[3] / "shared" / "data" / "spaces"


def space(size: int = 240, failing: int = 0) -> RecordedSpace:
    """A valley over two numbers and a word; the first `failing` configurations do not work."""
    grid = itertools.product(range(1, size // 8 + 1), (1, 2, 4, 8), ("a", "b"))
    configs = [{"x": x, "y": y, "z": z} for x, y, z in grid]
    runtimes = tuple(
        ()
        if i < failing
        else (1 + abs(c["x"] - 17) + abs(math.log2(c["y"]) - 2) + 3 * (c["z"] == "a"),) * 2
        for i, c in enumerate(configs)
    )
    reasons = tuple("correct" if times else "compile" for times in runtimes)
    return RecordedSpace("valley", tuple(configs), runtimes, reasons)


def cache(found: RecordedSpace) -> dict[str, object]:
    """The same in kernel_tuner's form."""
    entries = {}
    for i, (config, times) in enumerate(zip(found.configs, found.runtimes, strict=True)):
        time = math.fsum(times) / len(times) if times else "CompilationFailedConfig"
        entries[str(i)] = {**config, "time": time, "times": list(times)}
    return {"tune_params_keys": list(found.configs[0]), "cache": entries}


def test_every_form_gives_the_same_space(tmp_path) -> None:
    known = space(failing=3)
    write_t4(known, tmp_path / "t4.json.gz")
    (tmp_path / "cache.json").write_text(json.dumps(cache(known)))
    for name in ("t4.json.gz", "cache.json"):
        found = read_space(tmp_path / name)
        assert found.configs == known.configs
        assert found.runtimes == known.runtimes
        assert found.reasons == known.reasons
    numbers = [[c["x"], c["y"]] for c in known.configs if c["z"] == "b"]
    times = [[1.0, 3.0] if i else [math.nan, 1.0] for i in range(len(numbers))]
    np.savez(tmp_path / "a.npz", keys=["x", "y"], configs=numbers, times_ms=times)
    found = read_space(tmp_path / "a.npz")
    assert found.runtimes[:2] == ((), (1.0, 3.0))
    assert found.optimum_ms == 2.0


def test_the_cache_we_write_is_read_back_and_has_every_value_in_its_key(tmp_path) -> None:
    known = space(failing=2)
    write_cache(known, tmp_path / "cache.json")
    found = read_space(tmp_path / "cache.json")
    assert (found.configs, found.runtimes, found.reasons[0]) == (
        known.configs, known.runtimes, "runtime",
    )  # fmt: skip
    document = json.loads((tmp_path / "cache.json").read_text())
    assert list(document["cache"])[:2] == ["1,1,a", "1,1,b"]
    assert document["tune_params"]["y"] == [1, 2, 4, 8]


def test_what_we_write_is_the_open_schema_and_the_same_bytes_every_time(tmp_path) -> None:
    for name in ("one.json.gz", "two.json.gz"):
        write_t4(space(failing=1), tmp_path / name)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    document = json.loads(gzip.decompress((tmp_path / "one.json.gz").read_bytes()))
    assert document["schema_version"] == "1.0.0"
    words = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}
    for result in document["results"]:
        assert {"configuration", "times", "invalidity", "correctness"} <= set(result)
        assert result["invalidity"] in words
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[1]",
        b"\x1f\x8b\x08broken",
        b"PK\x03\x04broken",
        b'{"results": []}',
        b"\x00\xff",
    ],
    ids=["empty", "other", "list", "gzip", "archive", "nothing", "binary"],
)
def test_another_file_is_one_clear_error(tmp_path, text) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(TuneError, match=r"--replay .*x\.json: no recorded space"):
        read_space(path)


def test_a_space_in_which_nothing_works_or_something_occurs_twice_is_refused(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(cache(space(failing=240))))
    with pytest.raises(TuneError, match="not one of 240 configurations worked"):
        read_space(path)
    document = cache(space())
    document["cache"]["again"] = document["cache"]["0"]  # type: ignore[index]
    path.write_text(json.dumps(document))
    with pytest.raises(TuneError, match="occurs twice"):
        read_space(path)
    with pytest.raises(TuneError, match="No such file"):
        read_space(tmp_path / "none.json")


def test_the_baseline_is_the_mean_of_all_draws() -> None:
    small = space(8)
    times = small.times_ms
    for n in (1, 2, 3):
        every = [min(times[list(picked)]) for picked in itertools.combinations(range(8), n)]
        assert expected_best(small, 8)[n - 1] == pytest.approx(np.mean(every))
    assert expected_best(small, 8)[-1] == pytest.approx(times.min())


def test_random_search_scores_nothing_and_the_optimum_at_once_scores_one() -> None:
    known = space()
    first, last = window(known, 200)
    assert 1 <= first < last <= 200
    curves = [replay(known, "random", 200, seed) for seed in range(150)]
    assert abs(score(known, curves, 200).mean()) < 0.15
    at_once = np.full(200, known.optimum_ms)
    assert score(known, [at_once], 200)[0] == pytest.approx(1.0)


def test_a_search_tries_nothing_twice_survives_failures_and_beats_random() -> None:
    known = space(failing=40)
    curves = [replay(known, "mixed", 60, seed) for seed in range(4)]
    assert all((np.diff(curve[np.isfinite(curve)]) <= 0).all() for curve in curves)
    assert np.array_equal(curves[0], replay(known, "mixed", 60, 0))
    whole = replay(space(24), "mixed", 500, 1)
    assert len(whole) == 24
    assert whole[-1] == space(24).optimum_ms
    found = summarise(known, "mixed", [FinishedRun(c, 0.6, "us") for c in curves], (20, 60))
    assert found.cpu_ms == pytest.approx(10)
    assert found.score > 0.3
    assert found.share_at[60] >= found.share_at[20] > 0


def test_the_command_scores_a_space_without_a_device_and_writes_it_as_t4(tmp_path) -> None:
    path = tmp_path / "valley.json"
    path.write_text(json.dumps(cache(space())))
    done = kernelforge(
        "tune", "--replay", path, "--strategy", "random,tpe", "--seeds", "2",
        "--export-t4", tmp_path / "out.json.gz", "--json", **NO_VULKAN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["replay"]
    assert [(row["space"], row["strategy"], row["seeds"]) for row in rows] == [
        ("valley", "random", 2), ("valley", "tpe", 2),
    ]  # fmt: skip
    assert read_space(tmp_path / "out.json.gz").configs == space().configs


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--strategy", "best"], "--strategy best: there are"),
        (["--seeds", "0"], "--seeds 0: at least one"),
        (["--against", "genetic"], "--against genetic: there are optuna, kernel_tuner"),
        (["--against", "optuna:best"], "--against optuna:best: optuna has categorical, int"),
        (["--trials", "40"], "--trials is for tuning a device"),
        (["--seconds", "9"], "--seconds is for tuning a device"),
    ],
)
def test_wrong_options_of_a_replay_are_one_line(tmp_path, options, told) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(cache(space())))
    done = kernelforge("tune", "--replay", path, *options, **NO_VULKAN)
    assert done.returncode == 2
    assert told in done.stderr


def test_options_of_a_replay_without_one_are_one_line(tmp_path) -> None:
    for option in ("--scores", "--runs", "--peer-python", "--export-t4", "--against"):
        done = kernelforge("tune", "--family", "gemv", option, tmp_path / "x", **NO_VULKAN)
        assert done.returncode == 2
        assert f"{option} is of recorded spaces: give --replay FILE" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not SPACES.is_dir(), reason=f"no recorded spaces in {SPACES}")
@pytest.mark.parametrize(
    ("name", "size"), [("GEMM_A100.npz", 17956), ("convolution_milo_A100.json.gz", 4362)]
)
def test_published_spaces_are_read_whole(name, size) -> None:
    found = read_space(SPACES / name)
    assert len(found.configs) == size
    assert 0 < found.near_optimum < 0.05


@pytest.mark.parametrize("suggest", ["categorical", "int"])
def test_plain_optuna_searches_the_same_space_and_counts_only_new_valid_configurations(
    suggest,
) -> None:
    known = space(80, failing=10)
    holed = RecordedSpace("holed", known.configs[::2], known.runtimes[::2], known.reasons[::2])
    curve = replay_optuna(holed, suggest, 12, 1)
    assert len(curve) == 12
    assert set(curve[np.isfinite(curve)]) <= set(holed.times_ms)
    assert np.array_equal(curve, np.minimum.accumulate(curve))
    assert np.array_equal(curve, replay_optuna(holed, suggest, 12, 1))


def test_finished_runs_are_kept_and_one_that_was_torn_is_forgotten(tmp_path) -> None:
    path = tmp_path / "runs.jsonl"
    curve = np.array([math.inf, 3.0, 3.0, 1.5])
    runs = FinishedRuns(path)
    for seed in (0, 1):
        runs.add(space(), "mixed", seed, FinishedRun(curve, math.nan, "us 1"))
    path.write_text(path.read_text()[:-9])
    FinishedRuns(path).add(space(), "gp", 0, FinishedRun(curve, 0.5, "us 1"))
    again = FinishedRuns(path)
    kept = again.get(space(), "mixed", "us 1", 0, 4)
    assert kept is not None
    assert np.array_equal(kept.curve, curve)
    assert math.isnan(kept.cpu_s)
    assert again.get(space(), "mixed", "us 1", 1, 4) is None
    assert again.get(space(), "mixed", "us 2", 0, 4) is None
    assert again.get(space(232), "mixed", "us 1", 0, 4) is None
    other = again.get(space(), "gp", "us 1", 0, 4)
    assert other is not None
    assert other.cpu_s == 0.5
    path.write_text("{}\n")
    with pytest.raises(TuneError, match="holds no finished run"):
        FinishedRuns(path)
    with pytest.raises(TuneError, match=r"there is no folder .*none; make it first"):
        FinishedRuns(tmp_path / "none" / "runs.jsonl")


@pytest.mark.parametrize(
    "changed",
    [
        {"evaluations": 10**15},
        {"evaluations": 0, "steps": []},
        {"evaluations": "4"},
        {"steps": [[-1, 1.0]]},
        {"steps": [[0, 0.0]]},
        {"steps": [[0, math.nan]]},
        {"steps": [[0, 1.0], [1, 2.0]]},
        {"steps": [[0, None]]},
        {"seed": [1]},
    ],
)
def test_a_line_that_is_no_search_is_run_again(tmp_path, changed) -> None:
    path = tmp_path / "runs.jsonl"
    curve = np.array([3.0, 3.0, 3.0, 1.5])
    for seed in (0, 1):
        FinishedRuns(path).add(space(), "gp", seed, FinishedRun(curve, 0.5, "us 1"))
    whole, other = path.read_text().splitlines()
    path.write_text(whole + "\n" + json.dumps({**json.loads(other), **changed}) + "\n")
    found = FinishedRuns(path)
    assert found.get(space(), "gp", "us 1", 0, 4) is not None
    for evaluations in (0, 4, 10**15):
        assert found.get(space(), "gp", "us 1", 1, evaluations) is None


def test_a_space_that_the_form_of_another_tuner_cannot_hold_leaves_it_out(tmp_path) -> None:
    alike = RecordedSpace("alike", ({"x": 1}, {"x": "1"}), ((1.0,), (2.0,)), ("correct",) * 2)
    with pytest.raises(TuneError, match="alike: two configurations are 1 in kernel_tuner's cache"):
        write_cache(alike, tmp_path / "cache.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(PeerError, match="two configurations are 1"):
        kernel_tuner_searches(alike, None).__enter__()


def test_a_comparison_goes_on_where_it_stopped_and_writes_its_table(tmp_path) -> None:
    path = tmp_path / "valley.json"
    path.write_text(json.dumps(cache(space(64))))
    command = (
        "tune", "--replay", path, "--strategy", "random", "--against", "optuna:int",
        "--runs", tmp_path / "runs.jsonl", "--scores", tmp_path / "scores",
    )  # fmt: skip
    assert kernelforge(*command, "--seeds", "1", **NO_VULKAN).returncode == 0
    first = (tmp_path / "runs.jsonl").read_text()
    done = kernelforge(*command, "--seeds", "2", **NO_VULKAN)
    assert done.returncode == 0, done.stderr
    second = (tmp_path / "runs.jsonl").read_text()
    assert second.startswith(first)
    assert len(second.splitlines()) == 4
    page = (tmp_path / "scores" / "README.md").read_text()
    assert "| optuna:int | 2 |" in page
    assert str(tmp_path) not in page
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())["scores"]
    assert [(s["strategy"], s["seeds"]) for s in scores] == [("random", 2), ("optuna:int", 2)]


def test_a_tuner_that_is_not_there_is_left_out_with_its_reason(tmp_path) -> None:
    path = tmp_path / "valley.json"
    path.write_text(json.dumps(cache(space(64))))
    done = kernelforge(
        "tune", "--replay", path, "--strategy", "random", "--against", "kernel_tuner",
        "--peer-python", tmp_path / "python", "--seeds", "1", **NO_VULKAN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kernel_tuner is left out: ") == 1
    assert "kernel_tuner:" not in done.stdout


def test_kernel_tuner_searches_a_space_that_we_hand_it() -> None:
    if importlib.util.find_spec("kernel_tuner") is None:
        pytest.skip("kernel_tuner is not installed beside us")
    known = space(64, failing=5)
    with kernel_tuner_searches(known, None) as searches:
        assert searches.version.startswith("kernel_tuner ")
        curve = searches.run("genetic_algorithm", 20, 1)
        assert set(curve[np.isfinite(curve)]) <= set(known.times_ms)
        assert np.array_equal(curve, searches.run("genetic_algorithm", 20, 1))


def test_a_search_of_kernel_tuner_knows_nothing_of_those_before_it() -> None:
    if importlib.util.find_spec("kernel_tuner") is None:
        pytest.skip("kernel_tuner is not installed beside us")
    with kernel_tuner_searches(space(), None) as searches:
        for seed in range(4):
            searches.run("simulated_annealing", 40, seed)
        later = searches.run("simulated_annealing", 40, 9)
    with kernel_tuner_searches(space(), None) as searches:
        assert np.array_equal(later, searches.run("simulated_annealing", 40, 9))
