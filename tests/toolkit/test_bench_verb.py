"""`kernelforge bench`: two bundles in turns on a tiny model, and files of random weights."""

import csv
import io
import json
import math

import numpy as np
import pytest

from kernelforge.cli.bench_tables import find_ratios, pairs
from kernelforge.cli.model_bench import Subject, measure
from kernelforge.cli.state_size import bytes_per_token, state_bytes
from kernelforge.convert.random_model import random_model
from kernelforge.convert.recipes import tensors
from kernelforge.convert.shapes import SHAPES, parse_shape
from kernelforge.errors import ConvertError
from kernelforge.report.bench_journal import BENCH_FILE, read_bench
from kernelforge.report.serving import serving_rows
from kernelforge_runtime.models import load_reference
from tests.toolkit.cli_process import DEVICE, NO_VULKAN, kernelforge, one_line, workplace

STEPS = ("prefill of 3 tokens", "decode of one token")
SMALL = ("--pp", "3", "--tg", "4", "--reps", "2")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One run of two bundles, as JSON, and the journal it wrote."""
    place = workplace()
    folder = tmp_path_factory.mktemp("journal")
    done = kernelforge(
        "bench", place.model, "--device", DEVICE, "--weights", "f32,bf16", *SMALL,
        "--bundle", place.tuned / "generic", "--compare-bundle", "generic", "--json",
        "--journal", folder, "--trace-csv", folder / "trace.csv", **place.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_steps_of_every_test_are_traced_as_json_and_as_csv(compared):
    told, folder = compared
    expected = [f"{s}, {w}" for w in ("f32", "bf16") for s in STEPS]
    assert [trace["step"] for trace in told["traces"]] == expected
    rows = list(csv.DictReader(io.StringIO((folder / "trace.csv").read_text())))
    assert len(rows) == sum(len(trace["dispatches"]) for trace in told["traces"]) > 40


@pytest.mark.vulkan
@pytest.mark.glslang
def test_every_weight_format_test_and_bundle_has_a_result(compared):
    told, _ = compared
    found = [(r["weights"], r["test"], r["bundle"]) for r in told["results"]]
    tests = [(w, t, "generic") for w in ("f32", "bf16") for t in ("pp3", "tg4")]
    assert found == [test for test in tests for _ in range(2)]
    assert all(len(r["tok_per_s"]) == 2 and r["median_tok_per_s"] > 0 for r in told["results"])


@pytest.mark.vulkan
@pytest.mark.glslang
def test_pairs_are_the_quotients_of_what_took_turns(compared):
    told, _ = compared
    assert len(told["ratios"]) == 4
    first, second = told["results"][:2]
    expected = [x / y for x, y in zip(first["tok_per_s"], second["tok_per_s"], strict=True)]
    assert told["ratios"][0]["pairs"] == pytest.approx(expected, rel=1e-2)
    assert told["ratios"][0]["ratio"] == pytest.approx(np.median(expected), rel=1e-2)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_decoding_tells_what_a_token_costs(compared):
    told, _ = compared
    ceiling = told["ceilings"]["read_gbps"]
    decoding = [r for r in told["results"] if r["test"] == "tg4"]
    for result in decoding:
        assert result["host_us"] > 0
        assert result["dispatches"] > 10
        assert result["state_bytes"] == 4 * (2 * 64 + 64 * 64)
        assert result["kernels"] == f"{result['dispatches']} generic"
        moved = result["touched_bytes"] * result["median_tok_per_s"] / 1e9
        assert result["gbps"] == pytest.approx(moved)
        assert result["read_share"] == pytest.approx(moved / ceiling)
    full, half = (next(r for r in decoding if r["weights"] == w) for w in ("f32", "bf16"))
    assert half["touched_bytes"] < full["touched_bytes"] < 2 * half["touched_bytes"] + 1


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_step_s_dispatches_are_told_in_all_and_per_layer(compared):
    """Around the one layer: embedding, two norms, the head; in decode the choice of the next token,
    in a prompt the copy of what token shifts carried aside.
    """
    told, _ = compared
    for result in told["results"]:
        assert result["step_dispatches"] == result["layer_dispatches"] + 5
        assert 6 <= result["layer_dispatches"] <= 12
        if result["test"].startswith("tg"):
            assert result["step_dispatches"] == result["dispatches"]


@pytest.mark.vulkan
@pytest.mark.glslang
def test_touched_bytes_are_the_matrices_and_one_row_of_the_table(compared):
    """One layer of width 64, padded as kernels take it: three stacks, output, channel mix, head."""
    told, _ = compared
    full = next(r for r in told["results"] if (r["weights"], r["test"]) == ("f32", "tg4"))
    width, vocab = 64, 256
    least = 4 * (4 * width**2 + 2 * 4 * width**2 + vocab * width + width)
    assert least < full["touched_bytes"] < 2.5 * least


@pytest.mark.vulkan
@pytest.mark.glslang
def test_results_and_ceilings_go_to_the_journal(compared):
    told, folder = compared
    records, ceilings = read_bench(folder / BENCH_FILE)
    assert [r.to_json()["tok_per_s"] for r in records] == [r["tok_per_s"] for r in told["results"]]
    assert ceilings is not None and ceilings.read_gbps == told["ceilings"]["read_gbps"]
    found = find_ratios(records)
    assert len(found) == 4 and len(pairs(*found[0][:2])) == 2


def test_numpy_is_measured_without_vulkan(tmp_path):
    model = random_model("L1.C64.V256", tmp_path)
    done = kernelforge("bench", model, "--device", "cpu", "--csv", *SMALL, **NO_VULKAN)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["test"] for row in rows] == ["pp3", "tg4"]
    assert all(float(row["median"]) > 0 and row["device"] == "numpy" for row in rows)


def test_shape_in_place_of_a_file_is_kept_in_the_cache(tmp_path):
    done = kernelforge(
        "bench", "--shape", "L1.C64.V128", "--device", "cpu", *SMALL, "--quiet",
        KERNELFORGE_CACHE=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "random-l1.c64.v128: rwkv7 L1 C64 V128" in done.stdout
    assert "| tg4 " in done.stdout
    assert len(list(tmp_path.rglob("random-l1.c64.v128.safetensors"))) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give a MODEL file, or --shape"),
        (("m.pth", "--shape", "v7-0.1b"), "give a MODEL file, or --shape"),
        (("m.pth", "--pp", "0", "--tg", "0"), "nothing to measure"),
        (("m.pth", "--json", "--csv"), "do not go together"),
        (("m.pth", "--device", "cpu", "--compare-bundle", "generic"), "has no kernels"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(arguments, complaint):
    done = kernelforge("bench", *arguments)
    assert done.returncode == 2
    assert complaint in one_line(done.stderr, "kernelforge bench: ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("absent.pth",), "absent.pth: no such file"),
        (("--shape", "v9"), "--shape v9: there are v4-0.1b"),
        ((__file__,), "is neither"),
        (("--shape", "L1.C64.V128", "--weights", "f8"), "weight format 'f8'"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(tmp_path, arguments, complaint):
    done = kernelforge("bench", *arguments, "--quiet", KERNELFORGE_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert complaint in one_line(done.stderr, "kernelforge bench: ")


def test_subjects_take_turns():
    order = []

    class Listed(Subject):
        def decode(self, tokens):
            order.append((self.name, tokens))
            return 1.0, 1.0

        def __init__(self, name):
            self.name, self.model = name, None

    measure([Listed("a"), Listed("b")], "tg", 8, 2)
    assert order == [("a", 4), ("b", 4), ("a", 8), ("b", 8), ("a", 8), ("b", 8)]


def test_random_model_is_the_same_every_time_and_is_not_made_twice(tmp_path):
    first = random_model("L2.C64.V128", tmp_path / "a")
    second = random_model("l2.c64.v128", tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    before = first.stat().st_mtime_ns
    assert random_model("L2.C64.V128", tmp_path / "a").stat().st_mtime_ns == before
    other = random_model("L2.C64.V128", tmp_path / "a", seed=1)
    assert other != first and other.read_bytes() != first.read_bytes()


SIZES = {
    "L2.C128.V256": ("rwkv7", 2, 512),
    "v4.L2.C128.V256": ("rwkv4", 0, 512),
    "v5.L2.C128.V256": ("rwkv5.2", 2, 448),
    "V6.L2.C128.V256": ("rwkv6", 2, 448),
}


@pytest.mark.parametrize("shape", SIZES)
def test_random_model_is_read_as_its_version_and_stays_finite(tmp_path, shape):
    model = load_reference(random_model(shape, tmp_path))
    config = model.config
    assert (config.layers, config.width, config.vocab) == (2, 128, 256)
    assert (config.version, config.heads, config.ffn) == SIZES[shape]
    state = model.new_state()
    logits, state = model.forward([i * 37 % 256 for i in range(300)], state)
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
    assert all(np.abs(array).max() < 100 for array in state.arrays.values())
    assert state_bytes(config) == sum(array.nbytes for array in state.arrays.values())
    assert bytes_per_token(config) == 0


def test_released_shape_has_its_low_rank_widths():
    shape = parse_shape("v7-0.1b")
    assert (shape.layers, shape.width, shape.vocab) == (12, 768, 65536)
    assert shape.lora == (64, 64, 32, 128)
    assert parse_shape("V6-0.1B").lora == (32, 64)
    assert all(s.width % 64 == 0 for s in SHAPES.values())


@pytest.mark.parametrize(
    ("shape", "millions"),
    [
        ("v4-0.1b", 192.8),
        ("v5-0.1b", 192.8),
        ("v7-0.1b", 191.1),
        ("v7-0.4b", 450.8),
        ("v7-1.5b", 1527.7),
        ("v7-2.9b", 2948.1),
    ],
)
def test_released_shape_has_as_many_weights_as_the_released_model(shape, millions):
    """Released RWKV-7 files carry the first layer's unused value residual; these do not."""
    count = sum(math.prod(dims) for dims, _, _ in tensors(parse_shape(shape)).values())
    unused = 0
    if shape.startswith("v7"):
        width, rank = parse_shape(shape).width, parse_shape(shape).lora[2]
        unused = width + 2 * width * rank
    assert (count + unused) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    "text",
    ["", "L0.C64.V16", "L1.C65.V16", "L1.C64", "L9999.C65536.V2", "v3.L1.C64.V16", "v6", "v6-9b"],
)
def test_impossible_shape_is_refused(text):
    with pytest.raises(ConvertError, match="--shape"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--format", "csv", "--json"), "--format csv and --json do not go together"),
        (("--batch", "1,2", "--device", "cpu"), "need a Vulkan device"),
        (("--first-token", "--device", "cpu"), "need a Vulkan device"),
        (("--long", "10"), "--long 10: a token from 11"),
        (("--batch", "1,0"), "'0' is not a whole number from 1 up"),
        (("--batch", "257"), "257 sequences: at most 256"),
        (("--batch", ""), "'' is not a whole number"),
    ],
)
def test_what_serving_cannot_measure_is_a_usage_error(arguments, complaint):
    done = kernelforge("bench", "m.pth", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.fixture(scope="module")
def served_journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal")


@pytest.fixture(scope="module")
def served(served_journal):
    """One run of all that is about serving, as rows of CSV."""
    place = workplace()
    done = kernelforge(
        "bench", place.model, "--device", DEVICE, "--weights", "f32", "--pp", "0", "--tg", "2",
        "--reps", "2", "--batch", "1,2,3", "--first-token", "--long", "20", "--format", "csv",
        "--bundle", place.tuned / "generic", "--journal", served_journal,
        **place.env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {row["test"]: row for row in csv.DictReader(io.StringIO(done.stdout))}


@pytest.mark.vulkan
@pytest.mark.glslang
def test_every_batch_the_first_token_and_a_late_one_have_a_row(served):
    assert [*served] == [
        "tg2", "tg2@1", "tg2@2", "tg2@3", "first-token", "load-to-first-token", "read-file",
        "reread-file", "tg@10", "tg@20",
    ]  # fmt: skip
    for row in served.values():
        samples = [float(value) for value in row["tok_per_s"].split()]
        assert len(samples) == 2 and min(samples) > 0
        assert float(row["median"]) == pytest.approx(np.median(samples), rel=1e-3)
        assert float(row["mean"]) == pytest.approx(np.mean(samples), rel=1e-3)
    assert [served[f"tg2@{b}"]["batch"] for b in (1, 2, 3)] == ["1", "2", "3"]


@pytest.mark.vulkan
@pytest.mark.glslang
def test_reports_know_what_was_served(served, served_journal):
    found = {row.test: row for row in serving_rows(served_journal / "bench.jsonl")}
    assert [*found] == [test for test in served if test != "tg2"]
    for test, row in found.items():
        assert row.median == pytest.approx(float(served[test]["median"]), rel=1e-3)
    assert found["tg2@1"].times_one == 1.0 and found["tg2@3"].sequences == 3


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_process_takes_longer_to_its_first_token_than_loading_does(served):
    process, load, read, reread = (
        float(served[test]["median"])
        for test in ("first-token", "load-to-first-token", "read-file", "reread-file")
    )
    assert process > load > max(read, reread)
    assert served["read-file"]["unit"] == "s" and served["tg@20"]["unit"] == "tok/s"
