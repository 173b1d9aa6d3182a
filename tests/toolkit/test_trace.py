"""`--trace`: every dispatch of a step with its time and rates, in groups, beside the whole."""

import csv
import io
import json
import math
import subprocess

import pytest

from kernelforge.cli.trace import (
    TracedDispatch,
    TracedStep,
    csv_text,
    print_trace,
    trace_step,
)
from kernelforge_runtime.models import load_model
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import DEMO, random_rwkv7
from tests.toolkit.cli_process import (
    NO_VULKAN,
    command,
    environment,
    kernelforge,
    need_device,
    one_line,
    tiny_model,
)


def dispatch(family="gemv", layer=0, ns=1000.0, barrier=500.0, **more):
    return TracedDispatch(
        **{
            "label": "blocks.0.w",
            "layer": layer,
            "family": family,
            "variant": f"{family}/f16/A1",
            "problem": "M4.K8",
            "match": "exact",
            "bundle": "llvmpipe",
            "ns": ns,
            "barrier_ns": barrier,
            "flops": 64_000.0,
            "nbytes": 8_000.0,
            "share": 0.25,
            **more,
        }
    )


STEP = TracedStep(
    "decode of one token",
    "some device",
    (
        dispatch("embedding", None, 500.0, math.nan, flops=0.0),
        dispatch(),
        dispatch(layer=1, ns=3000.0),
        dispatch("unknown", None, flops=0.0, nbytes=0.0),
    ),
    untraced_ns=5500.0,
    wall_ns=9000.0,
)


def test_rates_are_of_what_must_be_done_and_nothing_where_that_is_not_known():
    first, gemv, _, unknown = (d.row() for d in STEP.dispatches)
    assert gemv[5:8] == ("1.0", "8.00", "64.00")  # us, GB/s, GFLOP/s
    assert gemv[8:10] == ("25.0 %", "0.5")
    assert first[6:8] == ("16.00", "-")
    assert first[9] == "-"
    assert unknown[6:8] == ("-", "-")


def test_dispatches_are_added_up_by_family_and_by_layer():
    assert [(n, c, ns) for n, c, ns, *_ in STEP.grouped("family")] == [
        ("embedding", 1, 500.0), ("gemv", 2, 4000.0), ("unknown", 1, 1000.0),
    ]  # fmt: skip
    assert [(n, c, ns) for n, c, ns, *_ in STEP.grouped("layer")] == [
        ("outside of layers", 2, 1500.0), ("0", 1, 1000.0), ("1", 1, 3000.0),
    ]  # fmt: skip


def test_the_sum_and_the_barriers_stand_beside_the_untraced_step():
    assert STEP.sums() == (
        "4 dispatches 5.5 us + 3 barriers 1.5 us = 7.0 us traced; untraced 5.5 us on the device "
        "(127 % of it traced), 9.0 us on the host's clock"
    )


def test_csv_has_a_line_per_dispatch_of_every_step():
    rows = list(csv.DictReader(io.StringIO(csv_text([STEP, STEP]))))
    assert len(rows) == 8
    assert rows[1]["gbps"] == "8.0"
    assert rows[1]["gflops"] == "64.0"
    assert (rows[0]["layer"], rows[0]["barrier_ns"], rows[2]["layer"]) == ("", "", "1")


def test_a_queue_without_timestamps_is_said_to_have_none():
    said = []
    print_trace(said.append, TracedStep("decode of one token", "some device", (), 2e3, 3e3))
    assert said == [
        "no trace of decode of one token: some device has no timestamps on its queue; "
        "2.0 us by the host's clock"
    ]


@pytest.mark.vulkan
@pytest.mark.parametrize("tokens", [[5], [5, 6, 7]])
def test_every_dispatch_of_a_step_is_timed_and_the_state_moves_on(tokens):
    with load_model(DEMO, opened(DEVICES[0]), weights="f16") as model:
        state = model.new_state()
        step = trace_step(model, tokens, state)
        planned = model.calls(*((1, "greedy") if len(tokens) == 1 else (4, "last")))
        assert [d.label for d in step.dispatches] == [call.label for call in planned]
        assert {d.layer for d in step.dispatches} == {None, *range(model.config.layers)}
        assert state.position % len(tokens) == 0
        assert state.position > 0
        assert step.untraced_ns > 0
        assert step.wall_ns > 0
        if not model.device.info.timestamp_bits:
            pytest.skip("no timestamps on this device's queue: nothing more to look at")
        assert sum(d.share for d in step.dispatches) <= 1 + 1e-6
        assert all(d.ns > 0 for d in step.dispatches)
        assert 0 < step.barriers < len(step.dispatches)
        told = step.to_json()
        assert sum(f["ns"] for f in told["families"]) == pytest.approx(told["dispatch_ns"])
        assert sum(f["dispatches"] for f in told["layers"]) == len(step.dispatches)


@pytest.mark.vulkan
def test_a_step_of_several_sequences_is_timed_as_the_one_that_decodes_them():
    with load_model(DEMO, opened(DEVICES[0]), weights="f16", slots=3) as model:
        states = [model.new_state() for _ in range(3)]
        step = trace_step(model, [5, 6, 7], *states)
        assert step.name == "decode of 3 sequences"
        expected = [call.label for call in model.calls(3, "last", 3)]
        assert {state.position for state in states} == {states[0].position}
        assert states[0].position > 0
        assert step.wall_ns > 0
        if not model.device.info.timestamp_bits:
            pytest.skip("no timestamps on this device's queue: nothing more to look at")
        assert [d.label for d in step.dispatches] == expected
        assert "T3" in {part for d in step.dispatches for part in d.problem.split(".")}


@pytest.mark.vulkan
def test_a_bench_traces_the_steps_of_its_batches(tmp_path):
    need_device()
    asked = ("bench", tiny_model(), "--journal", tmp_path, "--pp", "0", "--reps", "1", "--trace")
    found = kernelforge(*asked, "--tg", "2", "--batch", "1,2,3", "--json", "--quiet")
    assert found.returncode == 0, found.stderr
    names = [trace["step"].split(",")[0] for trace in json.loads(found.stdout)["traces"]]
    assert names == ["decode of one token", "decode of 2 sequences", "decode of 3 sequences"]
    assert all(trace["dispatches"] for trace in json.loads(found.stdout)["traces"])
    found = kernelforge(*asked, "--tg", "0", "--first-token")
    assert found.returncode == 2
    assert one_line(found.stderr, "kernelforge bench: --trace times the steps of --pp, --tg and")


def test_a_bench_by_numpy_has_nothing_to_trace():
    done = kernelforge("bench", tiny_model(), "--device", "cpu", "--trace", **NO_VULKAN)
    assert done.returncode == 2
    assert "--trace needs a Vulkan device" in one_line(done.stderr, "kernelforge bench: ")


def test_run_checks_every_layer_by_numpy_and_prints_no_text():
    done = kernelforge(
        "run", tiny_model(), "Hello there", "--device", "cpu", "--check", **NO_VULKAN
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["layer", "behind"]
    assert lines[1].split()[:2] == ["-", "embedding"]
    assert "every value is finite" in lines[-1]


def test_a_check_that_finds_an_infinite_value_names_the_first_layer_and_fails(tmp_path):
    def spoil(weights):
        weights["blocks.1.ffn.key.weight"] *= 100
        weights["blocks.1.ffn.value.weight"][3] = 3e38

    path = random_rwkv7(tmp_path / "m.safetensors", layers=3, change=spoil)
    asked = ("run", path, "--prompt-ids", "1,2,3", "--device", "cpu", "--check", "--json")
    done = kernelforge(*asked, **NO_VULKAN)
    assert done.returncode == 1
    error = one_line(done.stderr, "kernelforge run: ")
    assert "layer 1, channel mix, is the first with values that are NaN or infinite: 3" in error
    told = json.loads(done.stdout)["check"]
    assert told["damage"] in error
    places = told["probes"][0]["places"]
    assert [p["not_finite"] > 0 for p in places if p["layer"] == 0] == [False, False]
    assert next(p for p in places if p["not_finite"])["layer"] == 1


@pytest.mark.parametrize("option", ["--save-state=s", "--stats", "--trace", "--trace-csv=t.csv"])
def test_what_a_check_does_not_do_is_not_left_undone_in_silence(option):
    found = kernelforge("run", "none.safetensors", "Hello", "--check", option, **NO_VULKAN)
    name = option.split("=")[0].removesuffix("-csv")
    assert found.returncode == 2
    assert one_line(found.stderr, "kernelforge run: --check runs the prompt alone").endswith(name)


@pytest.mark.parametrize("verb", ["run", "bench"])
@pytest.mark.parametrize(
    ("place", "says"), [("no/t.csv", "there is no such folder"), (".", "it is a folder")]
)
def test_a_csv_that_cannot_be_written_is_said_before_anything_runs(tmp_path, verb, place, says):
    prompt = ("Hello",) if verb == "run" else ()
    path = tmp_path / place
    found = kernelforge(verb, "none.safetensors", *prompt, "--trace-csv", path, **NO_VULKAN)
    assert found.returncode == 1
    assert says in one_line(found.stderr, f"kernelforge {verb}: --trace-csv {path}: ")


@pytest.mark.vulkan
def test_a_csv_takes_the_place_of_an_older_one_or_goes_to_a_stream_as_it_comes(tmp_path):
    need_device()
    asked = ["run", tiny_model(), "Hello", "--tokens", "1", "--quiet", "--trace-csv"]
    file = tmp_path / "t.csv"
    file.write_text("old")
    assert kernelforge(*asked, file).returncode == 0
    assert file.read_text().startswith("step,")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert "\nstep," in kernelforge(*asked, "/dev/stdout").stdout
    with file.open("w") as both:  # the text and the table
        subprocess.run(
            command(*asked, "/dev/stdout"),
            env=environment(PYTHONUNBUFFERED=""),
            stdout=both,
            check=True,
        )
    text = file.read_text()
    assert len(text) > text.index("\nstep,") > 0


@pytest.mark.vulkan
def test_a_csv_onto_a_full_disk_names_the_file_and_costs_nothing_else(tmp_path):
    need_device()
    asked = ["run", tiny_model(), "Hello", "--tokens", "1", "--quiet"]
    found = kernelforge(*asked, "--save-state", tmp_path / "s", "--trace-csv", "/dev/full")
    assert found.stdout
    assert found.returncode == 1
    says = "kernelforge run: --trace-csv /dev/full: No space left on device: use another path"
    assert one_line(found.stderr, says)
    assert (tmp_path / "s").stat().st_size > 0
