"""Recording a space: every configuration is in it, a killed recording goes on, it replays."""

import gzip
import json
from dataclasses import replace

import pytest

from kernelforge.errors import TuneError
from kernelforge.measure.bench import Bench
from kernelforge.measure.programs import SAME
from kernelforge.render import template_sha256
from kernelforge.tune.drift import Drift
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.recorded import write_t4
from kernelforge.tune.recorded_forms import read_space
from kernelforge.tune.recording import ONCE, REFERENCE, WARM_UP, Recording, SubSpace, _smoothed
from kernelforge.tune.replay import replay
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.toolkit.cli_process import DEVICE, kernelforge, need_compiler, need_device
from tests.toolkit.small_family import needs_compiler, small_family

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

PROBLEM = Problem(M=96, K=64)


@pytest.fixture
def sub(device) -> SubSpace:
    needs_compiler()
    family = small_family(("none", "wrong"))
    return SubSpace.of(device.info, family, F32, PROBLEM, {"WORKGROUP": ["8", "16", "32"]})


class StoppedError(Exception):
    pass


def stop_after(count: int):
    seen = []

    def told(found) -> None:
        seen.append(found)
        if len(seen) == count:
            raise StoppedError

    return told


def test_every_configuration_is_recorded_and_failures_as_such(device, sub, tmp_path) -> None:
    assert {p["WORKGROUP"] for p in sub.configs} == {8, 16, 32}
    recording = Recording(sub, Journal(tmp_path / "j.jsonl"), ())
    with Bench(device, sub.family, F32, PROBLEM, effort=ONCE) as bench:
        recording.run(bench, lambda found: None)
    space = recording.space("small")
    assert len(space.configs) == len(sub.configs) == len(recording)
    for config, reason, times in zip(space.configs, space.reasons, space.runtimes, strict=True):
        assert reason == ("correct" if config["FAULT"] == "none" else "correctness")
        assert bool(times) == (config["FAULT"] == "none")
    phases = [m.phase for m in read_journal(tmp_path / "j.jsonl")]
    assert phases[0] == phases[-1] == REFERENCE
    assert phases.count(REFERENCE) >= 2 + (len(sub.configs) - 1) // 10
    write_t4(space, tmp_path / "small.json.gz")
    told = json.loads(gzip.decompress((tmp_path / "small.json.gz").read_bytes()))
    assert told["metadata"]["problem"] == "M96.K64"
    back = read_space(tmp_path / "small.json.gz")
    assert (back.configs, back.runtimes, back.reasons) == (
        space.configs, space.runtimes, space.reasons,
    )  # fmt: skip
    assert back.metadata == space.metadata
    assert replay(back, "mixed", 99, 0)[-1] == space.optimum_ms


def test_a_stopped_recording_goes_on_and_measures_nothing_twice(device, sub, tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    with Bench(device, sub.family, F32, PROBLEM, effort=ONCE) as bench:
        with pytest.raises(StoppedError):
            Recording(sub, Journal(path), ()).run(bench, stop_after(5))
        # What another driver measured, or another problem, is no part of it.
        foreign = replace(read_journal(path)[1], driver="another")
        Journal(path).append(foreign)
        again = Recording(sub, Journal(path), read_journal(path))
        seen = []
        again.run(bench, seen.append)
    assert len(seen) == len(sub.configs) - 5
    ours = [m for m in read_journal(path) if m.phase == "trial" and m.driver != "another"]
    assert len({m.variant for m in ours}) == len(ours) == len(sub.configs)
    assert len(again.drift.times_ns) == sum(m.phase == REFERENCE for m in read_journal(path))


def test_what_a_warm_up_ran_is_not_taken_for_a_time(device, sub, tmp_path) -> None:
    path = tmp_path / "j.jsonl"
    recording = Recording(sub, Journal(path), ())
    with Bench(device, sub.family, F32, PROBLEM, effort=ONCE) as bench:
        recording.warm_up(bench, lambda found: None)
        assert recording.warmed == len(sub.configs)
        assert {m.phase for m in read_journal(path)} == {WARM_UP}
        with pytest.raises(TuneError, match="nothing was measured"):
            recording.space("small")
        again = Recording(sub, Journal(path), read_journal(path))
        seen = []
        again.warm_up(bench, seen.append)
    assert (seen, again.warmed, len(again)) == ([], len(sub.configs), 0)


def test_times_are_those_of_a_device_that_does_not_drift(device, sub, tmp_path) -> None:
    """It is twice as slow for the second; the third has its time from the first, and its place."""
    path = tmp_path / "j.jsonl"
    with Bench(device, sub.family, F32, PROBLEM, effort=ONCE) as bench:
        first, second, third = (bench.describe(p) for p in sub.configs[:3])
        default = replace(bench.describe(sub.default), phase=REFERENCE)
        lines = [
            *[(default, 1e6, "")] * 3, (first, 3e6, ""),
            *[(default, 2e6, "")] * 3, (second, 6e6, ""),
            (third, 3e6, f"{SAME} {first.variant}"), *[(default, 2e6, "")] * 2,
        ]  # fmt: skip
        template = template_sha256(sub.family)
        for blank, ns, note in lines:
            spirv = second.variant if blank is second else first.variant
            Journal(path).append(
                replace(
                    blank, median_ns=ns, samples_ns=(ns,) * 5, note=note, spirv_sha256=spirv,
                    template_sha256=template,
                )
            )  # fmt: skip
        recording = Recording(sub, Journal(path), read_journal(path))
        with pytest.raises(StoppedError):
            recording.run(bench, stop_after(1))
    made = recording.space("made")
    by_name = dict(zip(map(str, made.configs), made.times_ms, strict=True))
    assert len(recording) == 4
    for params in sub.configs[:3]:
        values = {n: v if isinstance(v, str) else int(v) for n, v in params.items()}
        assert by_name[str(values)] == pytest.approx(3.0)


def test_one_disturbed_reference_is_no_drift() -> None:
    times = [1.0, 1.0, 9.0, 1.0, 1.0, 2.0, 2.0]
    smoothed = _smoothed(Drift([(i, ns, 0.0) for i, ns in enumerate(times)]))
    assert smoothed.times_ns == [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    assert _smoothed(Drift([(0, 1.0, 0.0), (1, 3.0, 0.0)])).times_ns == [1.0, 3.0]


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ({"NOPE": ["1"]}, "no parameter of small; it has WORKGROUP, ROWS, FAULT"),
        ({"ROWS": ["3"]}, "--only ROWS=3: ROWS is one of 1, 2, 4"),
        ({"WORKGROUP": ["64"], "ROWS": ["4"]}, "leaves none of the configurations"),
    ],
)
def test_a_sub_space_that_is_none_is_one_clear_line(device, only, told) -> None:
    with pytest.raises(TuneError, match=told):
        SubSpace.of(device.info, small_family(), F32, PROBLEM, only)


def test_the_command_warms_up_records_and_its_file_replays(tmp_path) -> None:
    need_device()
    need_compiler()
    asked = [
        "tune", "--family", "layer_norm", "--precision", "f32", "--problem", "T=4,C=64,X=32",
        "--device", DEVICE, "--record", tmp_path / "ln.json.gz", "--journal", tmp_path / "j",
        "--only", "ADDRESS=1", "--only", "WORKGROUP=8,16", "--json",
    ]  # fmt: skip
    warmed = kernelforge(*asked, "--warm-up")
    assert warmed.returncode == 0, warmed.stderr
    assert not (tmp_path / "ln.json.gz").exists()
    done = kernelforge(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["configurations"] == json.loads(warmed.stdout)["warmed"] > 1
    assert told["outcomes"] == {"correct": told["configurations"]}
    scored = kernelforge("tune", "--replay", tmp_path / "ln.json.gz", "--seeds", "1", "--json")
    assert json.loads(scored.stdout)["replay"][0]["size"] == told["configurations"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "ADDRESS=1"], "give --record FILE"),
        (["--record", "x.json.gz", "--family", "gemv"], "give --precision"),
        (["--record", "x.txt", "--family", "gemv", "--precision", "f16", "--problem", "M=32,K=32"],
         "name it .json or .json.gz"),
        (["--record", "x.json", "--only", "ADDRESS"], "expected PARAM=VALUE,.."),
    ],
)  # fmt: skip
def test_wrong_options_of_a_recording_are_one_line(options, told) -> None:
    done = kernelforge("tune", *options)
    assert done.returncode == 2
    assert told in done.stderr
