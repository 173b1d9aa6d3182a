"""RWKV-7 on both op sets is held to the official package's numbers, and to itself."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import DEMO, SHARED, from_ggmf, from_golden, random_rwkv7

pytestmark = pytest.mark.vulkan


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the checkout: the golden vectors are there")
    path = tmp_path_factory.mktemp("golden") / "v7.safetensors"
    return path, from_golden(SHARED / "golden_v7.npz", path)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    return random_rwkv7(
        tmp_path_factory.mktemp("random") / "model.safetensors", layers=3, width=128
    )


def one_by_one(model, tokens):
    state, rows = None, []
    for token in tokens:
        logits, state = model.forward([token], state)
        rows.append(logits)
    return np.stack(rows), state


def worst(a, b):
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def test_numpy_equals_both_golden_logit_sets_and_the_state(golden):
    path, arrays = golden
    model = kf.load_reference(path)
    tokens = arrays["tokens"].tolist()
    sequence, _ = model.forward(tokens, full_output=True)
    single, state = one_by_one(model, tokens)
    assert worst(sequence, arrays["logits_seq"]) < 1e-4
    assert worst(single, arrays["logits_one"]) < 1e-4
    assert worst(state.arrays["wkv"][1], arrays["state.4"]) < 1e-4
    assert worst(state.arrays["shift"][2], arrays["state.3"]) < 1e-4


def test_vulkan_equals_both_golden_logit_sets_and_the_state(golden, device):
    path, arrays = golden
    tokens = arrays["tokens"].tolist()
    with kf.load_model(path, device, weights="f32") as model:
        sequence, _ = model.forward(tokens, full_output=True)
        single, state = one_by_one(model, tokens)
        for logits in (sequence, single):
            assert worst(logits, arrays["logits_seq"]) < 1e-3
            assert worst(logits, arrays["logits_one"]) < 1e-3
        for layer in range(2):
            assert worst(state.arrays["wkv"][layer], arrays[f"state.{3 * layer + 1}"]) < 1e-3
            assert worst(state.arrays["shift"][2 * layer], arrays[f"state.{3 * layer}"]) < 1e-3
            assert (
                worst(state.arrays["shift"][2 * layer + 1], arrays[f"state.{3 * layer + 2}"]) < 1e-3
            )


def test_the_tiny_trained_model_gives_the_published_logits(shared, device, tmp_path):
    path = tmp_path / "tiny.safetensors"
    from_ggmf(shared / "tiny-rwkv-7v0-834K-FP32.bin", path)
    expected = np.fromfile(shared / "expected-logits-7v0-834K.bin", "<f4")
    prompt = list(b'"in')
    with kf.load_model(path, device, weights="f32") as model:
        sequence, _ = model.forward(prompt)
        single, _ = one_by_one(model, prompt)
    assert worst(sequence, expected) <= 1e-4
    assert worst(single[-1], expected) <= 1e-4


@pytest.mark.parametrize("weights", ["f32", "bf16", "f16"])
def test_every_weight_format_equals_numpy_with_the_same_rounding(random_model, device, weights):
    tokens = list(range(40))
    expected, _ = kf.load_reference(random_model, np.float64, weights).forward(
        tokens, full_output=True
    )
    with kf.load_model(random_model, device, weights=weights) as model:
        logits, _ = model.forward(tokens, full_output=True)
    assert worst(logits, expected) < 1e-3


def test_chunks_of_any_size_give_the_same_logits_and_continuation(random_model, llvmpipe, rng):
    prompt = rng.integers(0, 96, 600).tolist()
    with kf.load_model(random_model, llvmpipe, weights="f32") as model:

        def run(size):
            state = model.new_state()
            for start in range(0, len(prompt), size):
                logits, _ = model.forward(prompt[start : start + size], state)
            token, out = int(np.argmax(logits)), []
            for _ in range(16):
                out.append(token)
                token = model.greedy(token, state)
            return logits, out

        expected, continuation = run(600)
        for size in (1, 7, 32, 255, 256, 257):
            logits, out = run(size)
            assert worst(logits, expected) < 1e-3, f"chunks of {size}"
            assert out == continuation, f"chunks of {size}"


def test_greedy_on_the_device_is_the_argmax_of_the_logits(random_model, device):
    with kf.load_model(random_model, device, weights="f16") as model:
        _, state = model.forward([5, 6, 7])
        twin = state.clone()
        token = 8
        for _ in range(8):
            logits, _ = model.forward([token], twin)
            token = model.greedy(token, state)
            assert token == int(np.argmax(logits))


def test_a_saved_loaded_or_cloned_state_continues_as_if_nothing_happened(
    random_model, device, tmp_path
):
    with kf.load_model(random_model, device, weights="f32") as model:
        expected, _ = model.forward([*range(20), 30])
        _, state = model.forward(list(range(20)))
        copy = state.clone()
        state.save(tmp_path / "s.safetensors")
        model.forward([1, 2, 3])  # another sequence takes the device in between
        for kept in (copy, model.load_state(tmp_path / "s.safetensors"), state):
            logits, _ = model.forward([30], kept)
            assert worst(logits, expected) < 1e-5


def test_a_state_outlives_its_model(random_model, llvmpipe):
    with kf.load_model(random_model, llvmpipe, weights="f32") as model:
        _, state = model.forward([1, 2, 3])
        expected, _ = model.forward([4], state.clone())
    with kf.load_model(random_model, llvmpipe, weights="f32") as model:
        logits, _ = model.forward([4], state)
    assert worst(logits, expected) < 1e-6


def test_a_model_loaded_without_a_device_opens_one_and_closes_it(random_model):
    with kf.load_model(random_model) as model:
        device = model.device
        logits, _ = model.forward([1, 2])
    assert np.isfinite(logits).all()
    assert device.handle is None
    with pytest.raises(kf.KernelForgeError):
        kf.load_model(random_model, weights="int3")


def test_state_bytes_do_not_grow(random_model, llvmpipe):
    with kf.load_model(random_model, llvmpipe) as model:
        _, state = model.forward([1])
        before = state.nbytes
        model.forward(list(range(90)), state)
        assert state.nbytes == before > 0


def test_a_closed_model_leaves_only_cached_pipelines(random_model, device):
    before = device.live_objects
    for _ in range(3):
        with kf.load_model(random_model, device) as model:
            model.forward([1, 2, 3])
            model.greedy(1, model.new_state())
    after = {k: v for k, v in device.live_objects.items() if k != "pipeline"}
    assert after == {k: v for k, v in before.items() if k != "pipeline"}


def test_a_token_beyond_the_vocabulary_is_refused_and_nothing_else_changes(random_model, llvmpipe):
    with kf.load_model(random_model, llvmpipe) as model:
        _, state = model.forward([1, 2])
        expected, _ = model.forward([3], state.clone())
        for tokens in ([3, 96], [-1], [2**40], [], [1.5]):
            with pytest.raises(kf.KernelForgeError, match="token"):
                model.forward(tokens, state)
        logits, _ = model.forward([3], state)
        assert worst(logits, expected) < 1e-6


@pytest.mark.skipif(DEMO is None, reason="no demonstration model in runtime/demo")
def test_f16_weights_choose_as_f32_weights_do_on_the_demonstration_model(llvmpipe):
    text = (DEMO.parent / "heldout.txt").read_bytes()[:257]
    choices = {}
    for weights in ("f32", "f16", "bf16"):
        with kf.load_model(DEMO, llvmpipe, weights=weights) as model:
            logits, _ = model.forward(list(text[:-1]), full_output=True)
            choices[weights] = logits.argmax(-1)
    assert (choices["f16"] == choices["f32"]).mean() >= 0.98
    assert (choices["bf16"] == choices["f32"]).mean() >= 0.90


@pytest.mark.skipif(DEMO is None, reason="no demonstration model in runtime/demo")
def test_the_demonstration_model_knows_its_text(llvmpipe):
    text = (DEMO.parent / "heldout.txt").read_bytes()[:2049]
    with kf.load_model(DEMO, llvmpipe, weights="f16") as model:
        logits, _ = model.forward(list(text[:-1]), full_output=True)
    shifted = logits - logits.max(-1, keepdims=True)
    chosen = shifted[np.arange(2048), list(text[1:])] - np.log(np.exp(shifted).sum(-1))
    assert -chosen.mean() / np.log(2) < 2.0
