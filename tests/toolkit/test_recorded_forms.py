"""Recorded spaces of others: every type of parameter, failures, units, and files that are none."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelforge.errors import TuneError
from kernelforge.report.cells import NONE
from kernelforge.report.searches import row, summary_rows, write_scores
from kernelforge.tune.acquisition import Strategy
from kernelforge.tune.finished_runs import FinishedRun
from kernelforge.tune.recorded import RecordedSpace, write_cache, write_t4
from kernelforge.tune.recorded_forms import read_space
from kernelforge.tune.replay import MARKS, Scored, expected_best, replay, score, summarise, window

WORDS = {"layout": ("row", "col"), "scale": (0.5, 1.0, 2.5), "fast": (False, True), "n": (1, 2, 4)}
CONFIGS = [dict(zip(WORDS, v, strict=True)) for v in itertools.product(*WORDS.values())]


def put(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def cache(times: list[Any]) -> dict[str, Any]:
    entries = {
        ",".join(map(str, c.values())): {**c, "time": t}
        for c, t in zip(CONFIGS, times, strict=True)
    }
    return {"tune_params_keys": list(WORDS), "cache": entries}


def result(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"configuration": config, **more}


def run_all(space: RecordedSpace, *ways: Strategy) -> list[Scored]:
    return [
        summarise(space, way, [
            FinishedRun(replay(space, way, max(MARKS), seed), 0.1, "us") for seed in range(2)
        ]) for way in ways
    ]  # fmt: skip


def test_words_fractions_and_flags_are_searched_and_written_again(tmp_path: Path) -> None:
    times = [1.0 + i % 7 + 0.1 * (i % 5) for i in range(len(CONFIGS))]
    found = read_space(put(tmp_path / "a.json", cache(times)))
    assert list(found.configs) == CONFIGS
    write_t4(found, tmp_path / "b.json.gz")
    write_cache(found, tmp_path / "c.json")
    scores = [s.score for s in run_all(found, "mixed", "random")]
    for name in ("b.json.gz", "c.json"):
        again = read_space(tmp_path / name)
        assert (again.configs, again.runtimes) == (found.configs, found.runtimes)
        assert [s.score for s in run_all(again, "mixed", "random")] == scores


def test_whatever_a_failure_was_written_as_it_is_one(tmp_path: Path) -> None:
    bad = ["InvalidConfig", "CompilationFailedConfig", math.nan, math.inf, 1e20, None, [], True]
    times = [*bad, *[2.0 + i for i in range(len(CONFIGS) - len(bad))]]
    document = cache(times)
    (first := next(iter(document["cache"].values()))).pop("time")
    first["__error__"] = "RuntimeFailedConfig"
    found = read_space(put(tmp_path / "a.json", document))
    assert [bool(t) for t in found.runtimes[: len(bad)]] == [False] * len(bad)
    assert found.reasons[:3] == ("runtime", "compile", "runtime")
    assert found.optimum_ms == 2.0
    document["cache"].popitem()
    text = json.dumps(document)[:-2] + ",\n"
    (tmp_path / "open.json").write_text(text)  # as an interrupted kernel_tuner leaves it
    assert len(read_space(tmp_path / "open.json").configs) == len(CONFIGS) - 1


def test_times_of_results_are_taken_in_their_unit_and_what_is_not_told_is_made_out(
    tmp_path: Path,
) -> None:
    first, second, third, fourth, fifth = CONFIGS[:5]
    micro = {"name": "time", "value": 3000.0, "unit": "us"}
    document = {
        "metadata": {"timeunit": "seconds"},
        "results": [
            result(first, times={"runtimes": [0.002, 0.004]}, invalidity="correct"),
            result(second, measurements=[micro]),
            result(third, invalidity="timeout"),
            result(fourth, times={"runtimes": [0.001]}, invalidity="correct", correctness=0),
            result(fifth, measurements=[{"name": "GFLOP/s", "value": 7.0, "unit": ""}]),
        ],
    }
    found = read_space(put(tmp_path / "a.json", document))
    assert found.runtimes == ((2.0, 4.0), (3.0,), (), (), ())
    assert found.reasons == ("correct", "correct", "timeout", "correctness", "runtime")
    bare = [
        result(first, times={"runtimes": [0.5]}, measurements=[{**micro, "unit": "s"}]),
        result(second, measurements=[{"name": "runtime", "value": 7.0, "unit": "ns"}],
               objectives=["runtime"]),
    ]  # fmt: skip
    assert read_space(put(tmp_path / "b.json", bare)).runtimes == ((500.0,), (7e-6,))
    document["metadata"] = {"timeunit": "fortnights"}
    with pytest.raises(TuneError, match="'fortnights', which is no unit of time"):
        read_space(put(tmp_path / "c.json", document))


def test_archives_hold_words_flags_records_and_one_time_each(tmp_path: Path) -> None:
    path, times = tmp_path / "a.npz", np.arange(1.0, len(CONFIGS) + 1)
    rows = np.array([[str(v) for v in c.values()] for c in CONFIGS])
    np.savez(path, keys=list(WORDS), configs=rows, times_ms=times)
    found = read_space(path)
    assert list(found.configs) == CONFIGS
    assert [type(v) for v in found.configs[0].values()] == [str, float, bool, int]
    record = np.array([tuple(c.values()) for c in CONFIGS], "U3,f8,?,i4")
    record.dtype.names = tuple(WORDS)
    np.savez(path, configs=record, times_ms=times[:, None])
    assert list(read_space(path).configs) == CONFIGS
    np.savez(path, keys=list(WORDS), configs=rows.astype(object), times_ms=times)
    with pytest.raises(TuneError, match=r"no recorded space .*allow_pickle"):
        read_space(path)
    np.savez(path, keys=list(WORDS), configs=rows[:, :2], times_ms=times)
    with pytest.raises(TuneError, match=r"configs \(36, 2\) do not fit 4 keys"):
        read_space(path)
    np.savez(path, keys=["x", "x"], configs=rows[:, :2], times_ms=times)
    with pytest.raises(TuneError, match="two parameters are called x"):
        read_space(path)
    np.savez(path, keys=list(WORDS), configs=rows, times_ms=times * 1j)
    with pytest.raises(TuneError, match="times_ms are complex"):
        read_space(path)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"cache": {"1": {"x": 1, "time": 0.0}}, "tune_params": {"x": [1]}}, "x=1 took 0.0"),
        ({"cache": {"1": {"time": 1.0}}, "tune_params_keys": ["x"]}, "entry '1' has no x"),
        ({"cache": {"1": {"x": 1, "time": 1.0}}}, "'tune_params' is missing"),
        ({"results": [{}]}, "'configuration' is missing"),
        ([result({"x": 1}), result({"y": 1})], "unlike parameters: y=1"),
        ([result({"x": 1}), result({"x": 1})], "occurs twice: x=1"),
        ([result({"x": math.inf})], "a parameter's value is inf"),
        ([result({"x": 1}, measurements=[{"value": 1.0}])], "'name' is missing"),
        ([result({"x": 1}, times={"runtimes": [10**400]})], "not one of 1 configurations worked"),
        ([result({"x": 10**400})], "a parameter's value is beyond 1e+100"),
        ([result({"x": -1e308}), result({"x": 1e308})], "a parameter's value is beyond 1e+100"),
        ({"cache": {"1": {"x": 1, "time": 1.0}}, "tune_params_keys": ["x", "x"]}, "are called x"),
        ([result({})], "no configuration in it"),
        ({"results": 7}, "no recorded space"),
        ({"cache": [1]}, "no recorded space"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, document: Any, told: str) -> None:
    with pytest.raises(TuneError, match=r"--replay .*a\.json: ") as caught:
        read_space(put(tmp_path / "a.json", document))
    assert told in str(caught.value)


def test_a_damaged_or_cut_archive_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(cache([1.0] * len(CONFIGS))).encode(), mtime=0)
    path = tmp_path / "a.json.gz"
    for cut in range(1, len(whole), 41):
        path.write_bytes(whole[:cut])
        with pytest.raises(TuneError, match="no recorded space"):
            read_space(path)
    for at in range(0, len(whole), 23):  # the rest of a flipped byte may still be a file
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert read_space(path).configs
        except TuneError as error:
            assert "--replay" in str(error)
    path.write_text("[" * 100_000)
    with pytest.raises(TuneError, match="no recorded space"):
        read_space(path)


def space(times: list[float]) -> RecordedSpace:
    runtimes = tuple((t,) if math.isfinite(t) else () for t in times)
    reasons = tuple("correct" if t else "runtime" for t in runtimes)
    return RecordedSpace("made", tuple({"x": i} for i in range(len(times))), runtimes, reasons)


@pytest.mark.parametrize("times", [[2.0] * 40, [0.1] * 3 + [math.inf] * 3, [1.0]])
def test_where_all_are_as_fast_there_is_no_score_and_no_error(
    tmp_path: Path, times: list[float]
) -> None:
    flat = run_all(space(times), "mixed")[0]
    assert math.isnan(flat.score)
    assert flat.to_json()["score"] is None
    assert row(flat)[3] == NONE
    assert flat.share_at[200] == 1.0
    hilly = run_all(space([1.0 + i for i in range(40)]), "random")[0]
    assert summary_rows([flat, hilly])[0][3] == f"{hilly.score:.3f}"
    assert summary_rows([flat])[0][3] == NONE
    write_scores([flat, hilly], "x", tmp_path)
    assert "nan" not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "times",
    [
        [1.0] * 30 + [5.0] * 10,  # the median is the optimum
        [math.inf] * 180 + [1.0 + i for i in range(20)],  # most fail
        [1.0, 2.0],
        [1.0, *[9.0] * 300],  # a needle
    ],
)
def test_odd_spaces_are_scored_between_random_and_the_optimum(times: list[float]) -> None:
    odd = space(times)
    first, last = window(odd, 200)
    assert 1 <= first <= last <= len(times)
    at_once = np.full(min(200, len(times)), odd.optimum_ms)
    assert score(odd, [at_once], 200)[0] == pytest.approx(1.0)
    baseline = expected_best(odd, 200)
    assert (np.diff(baseline) <= 1e-12).all()
    assert abs(score(odd, [baseline], 200)[0]) < 1e-9
    assert all(math.isfinite(s.score) for s in run_all(odd, "random", "tpe"))
    assert replay(odd, "mixed", 20, seed=1)[-1] < math.inf or not math.isfinite(times[0])
