"""`--lora` of every verb that loads a model, `convert --lora`, and states of the wrong model."""

import json

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main, parser_of
from kernelforge.convert import convert_checkpoint
from kernelforge_runtime.quantize import dequantize
from kernelforge_runtime.weights import open_checkpoint
from kernelforge_runtime.weights.adapters import open_model
from tests.models.checkpoints import random_rwkv7
from tests.runtime.model_files import write_pth
from tests.toolkit.cli_process import one_line

KEY = "blocks.0.att.key"
CPU = ("--device", "cpu", "--quiet")


@pytest.fixture
def base(tmp_path):
    return random_rwkv7(tmp_path / "base.safetensors", layers=1, vocab=256)


@pytest.fixture
def factors(rng):
    return {
        f"{KEY}.lora_A": rng.standard_normal((4, 64)).astype(np.float32),
        f"{KEY}.lora_B": rng.standard_normal((64, 4)).astype(np.float32),
    }


@pytest.fixture
def lora(tmp_path, factors):
    return write_pth(tmp_path / "lora.pth", factors)


def summed(base, factors, scale):
    with open_checkpoint(base) as checkpoint:
        old = checkpoint.tensor(f"{KEY}.weight").astype(np.float64)
    return old + scale * (factors[f"{KEY}.lora_B"].astype(np.float64) @ factors[f"{KEY}.lora_A"])


def test_convert_writes_what_loading_merges_and_its_hash(tmp_path, base, factors, lora, capsys):
    made = tmp_path / "merged.safetensors"
    assert main(["convert", str(base), str(made), "--lora", f"{lora}:8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merged"] == 1
    with open_checkpoint(made) as new, open_checkpoint(base) as old:
        assert set(new) == set(old)
        for name in old:
            expected = old.raw(name)
            if name == f"{KEY}.weight":
                expected = summed(base, factors, 2).astype(np.float32)
            np.testing.assert_array_equal(new.raw(name), expected)
    merged, loaded = kf.load_reference(made), kf.load_reference(base, adapters=[f"{lora}:8"])
    np.testing.assert_array_equal(merged.forward([1, 2])[0], loaded.forward([1, 2])[0])
    assert merged.hash == loaded.hash
    _, state = loaded.forward([3])
    state.save(tmp_path / "s")
    merged.load_state(tmp_path / "s")


def test_convert_rounds_and_quantises_the_sum(tmp_path, base, factors, lora):
    sums, name = summed(base, factors, 2), f"{KEY}.weight"
    half = convert_checkpoint(base, tmp_path / "h.st", "f16", adapters=[f"{lora}:8"]).path
    with open_checkpoint(half) as found:
        np.testing.assert_array_equal(found.raw(name), sums.astype(np.float32).astype(np.float16))
    eight = convert_checkpoint(
        base, tmp_path / "q.st", weights="q8", matrices=[name], adapters=[f"{lora}:8"]
    ).path
    with open_checkpoint(eight) as found:
        assert found.dtype(name) == "q8"
        step = np.abs(sums).max() / 127
        np.testing.assert_allclose(found.tensor(name), sums, atol=step)
        wide = found.tensor(name).astype(np.float64)
    with open_model(eight, [f"{lora}:-8"]) as again:  # a quantised model takes adapters, too
        away = wide - (sums - summed(base, factors, 0))
        np.testing.assert_allclose(again.tensor(name), away, atol=1e-5)
        stored = again.quantized(name)
        np.testing.assert_allclose(
            dequantize(stored, kf.dtypes.Q8), away, atol=np.abs(away).max() / 100
        )


VERBS = {
    "run": lambda model: ["run", model, "In", "--tokens", "2", *CPU],
    "batch": lambda model: ["batch", model, "--prompt", "In", "--tokens", "2", *CPU],
    "chat": lambda model: ["chat", model, *CPU],
    "eval": lambda model: ["eval", model, "--text", __file__, *CPU],
    "bench": lambda model: ["bench", model, "--pp", "1", "--tg", "0", "--reps", "1", *CPU],
    "convert": lambda model: ["convert", model, f"{model}.out.st"],
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("spelled", "says"),
    [("{}", "alpha is missing"), ("{}:4:nothing", "no tensor matched 'nothing'")],
)
def test_every_verb_refuses_an_adapter_in_one_line(base, lora, capsys, verb, spelled, says):
    arguments = VERBS[verb](str(base))
    assert main([*arguments, "--lora", spelled.format(lora)]) == 1
    assert one_line(capsys.readouterr().err, f"kernelforge {verb}: adapter {lora}: {says}")


def test_run_and_batch_say_what_the_merged_model_says(tmp_path, base, lora, capsys):
    merged = convert_checkpoint(base, tmp_path / "m.st", adapters=[f"{lora}:64"]).path

    def told(model, verb, *more):
        last = ["--greedy", "--tokens", "12", "--json"]
        prompt = ["In the"] if verb == "run" else ["--prompt", "In the"]
        assert main([verb, str(model), *prompt, *last, *more, *CPU]) == 0
        found = json.loads(capsys.readouterr().out)
        return found["tokens"] if verb == "run" else found["requests"][0]["tokens"]

    for verb in ("run", "batch"):
        found = told(base, verb, "--lora", f"{lora}:64")
        assert found == told(merged, verb)
        assert found != told(base, verb)


def test_a_state_saved_with_an_adapter_is_refused_without_it(tmp_path, base, lora, capsys):
    state = tmp_path / "s"
    saved = ["run", str(base), "In", "--tokens", "2", *CPU, "--lora", f"{lora}:4"]
    assert main([*saved, "--save-state", str(state)]) == 0
    assert main([*saved, "--load-state", str(state)]) == 0
    capsys.readouterr()
    assert main(["run", str(base), "In", *CPU, "--load-state", str(state)]) == 1
    assert one_line(capsys.readouterr().err, f"kernelforge run: state {state} is another model's")


def test_batch_reads_what_prompts_share_once(base, capsys):
    prompts = [w for end in "abcd" for w in ("--prompt", "In the beginning God created " + end)]

    def told(*more):
        arguments = ["batch", str(base), *prompts, "--slots", "1", "--greedy", "--tokens", "4"]
        assert main([*arguments, *more, "--json", *CPU]) == 0
        return json.loads(capsys.readouterr().out)

    found, plain = told(), told("--prefix-cache", "0")
    assert [r["text"] for r in found["requests"]] == [r["text"] for r in plain["requests"]]
    cache = found["stats"]["prefix_cache"]
    assert cache["reused_tokens"] == 2 * 29
    assert 0 < cache["nbytes"] <= cache["budget"] == 256 << 20
    assert plain["stats"]["prefix_cache"] is None
    small = told("--prefix-cache", "100KiB")["stats"]["prefix_cache"]
    assert small["evicted"] > 0
    assert small["nbytes"] <= 100 << 10


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("0MiB", 0), ("500M", 500 << 20), ("5kB", 5000), ("1.5GiB", 3 << 29), ("12", 12)],
)
def test_a_caches_size_is_written_as_that_of_the_memory(text, nbytes):
    parser, _ = parser_of("batch")
    args = parser.parse_args(["m", f"--prefix-cache={text}", f"--memory={text if nbytes else 1}"])
    assert args.prefix_cache == nbytes
    assert args.memory == nbytes or nbytes == 0


@pytest.mark.parametrize("size", ["much", "-1", "1 XB", "", "1e3", "9" * 30])
def test_a_size_that_is_none_gets_a_line(base, capsys, size):
    arguments = ["batch", str(base), "--prompt", "x", f"--prefix-cache={size}"]
    assert main(arguments) == 2
    assert "is no size such as 64MiB" in capsys.readouterr().err
