"""Recorded spaces: read in every form, searched again, scored against random sampling."""

import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from kernelforge.errors import TuneError
from kernelforge.tune.recorded import RecordedSpace, read_space, write_t4
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
    found = summarise(known, "mixed", curves, (20, 60))
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
    ],
)
def test_wrong_options_of_a_replay_are_one_line(tmp_path, options, told) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(cache(space())))
    done = kernelforge("tune", "--replay", path, *options, **NO_VULKAN)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.skipif(not SPACES.is_dir(), reason=f"no recorded spaces in {SPACES}")
@pytest.mark.parametrize(
    ("name", "size"), [("GEMM_A100.npz", 17956), ("convolution_milo_A100.json.gz", 4362)]
)
def test_published_spaces_are_read_whole(name, size) -> None:
    found = read_space(SPACES / name)
    assert len(found.configs) == size
    assert 0 < found.near_optimum < 0.05
