"""The pure ROSA language models are held to the author's classes, bit by bit.

Measured against the author's float32 run: 1.9e-6 (1 bit) and 2.4e-6 (4 bits) in NumPy float32.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.models import plain
from tests.models.checkpoints import from_golden
from tests.models.later_checkpoints import random_rosa_lm
from tests.models.plain import weights_of

both_kinds = pytest.mark.parametrize("bits", [1, 4])


@pytest.fixture
def golden(shared, tmp_path, bits):
    path = tmp_path / f"golden-{bits}bit.safetensors"
    return path, from_golden(shared / f"golden_rosa{bits}bitLM.npz", path)


def worst(a, b):
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def assert_golden(model, arrays):
    """Both ways through the tokens; returns the packed history that both leave."""
    tokens = arrays["tokens"].tolist()
    sequence, whole = model.forward(tokens, full_output=True)
    state, single = None, []
    for token in tokens:
        logits, state = model.forward([token], state)
        single.append(logits)
    for logits in (sequence, np.stack(single)):
        assert (logits.argmax(-1) == arrays["logits"].argmax(-1)).all()
        assert worst(logits, arrays["logits"]) < 1e-3
    words = -(-len(tokens) * model.config.rosa_bits // 32)
    found = state.arrays["rosa"][..., :words]
    assert (found == whole.arrays["rosa"][..., :words]).all()
    assert found.any()
    return found


@both_kinds
def test_numpy_gives_the_authors_logits_and_float32_the_bits_of_float64(golden, bits):
    path, arrays = golden
    found = {}
    for dtype in (np.float32, np.float64):
        model = kf.load_reference(path, dtype)
        assert model.config.version == f"rosa-lm-{bits}bit"
        found[dtype] = assert_golden(model, arrays)
    assert (found[np.float32] == found[np.float64]).all()


@pytest.mark.vulkan
@both_kinds
def test_vulkan_gives_the_authors_logits_and_numpys_bits(golden, device, bits):
    path, arrays = golden
    expected = assert_golden(kf.load_reference(path, np.float64), arrays)
    with kf.load_model(path, device, weights="f32") as model:
        assert (assert_golden(model, arrays) == expected).all()


@both_kinds
def test_a_random_model_equals_the_definition(tmp_path, bits, rng):
    path = random_rosa_lm(tmp_path / "model.safetensors", bits)
    tokens = rng.integers(0, 6, 40).tolist()  # few kinds: long matches
    logits, _ = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    with open_checkpoint(path) as read:
        x = weights_of(read, "emb.")["weight"][tokens]
        x = plain.layer_norm(x, **weights_of(read, "blocks.0.ln0."))
        for i in range(2):
            block = f"blocks.{i}."
            normed = plain.layer_norm(x, **weights_of(read, f"{block}ln3."))
            x = x + plain.rosa_qkv(weights_of(read, f"{block}rosa."), normed, bits)
            normed = plain.layer_norm(x, **weights_of(read, f"{block}ln2."))
            x = x + plain.channel_mix(weights_of(read, f"{block}ffn."), normed)
        x = plain.layer_norm(x, **weights_of(read, "ln_out."))
        expected = x @ weights_of(read, "head.")["weight"].T
    assert worst(logits, expected) < 1e-5


def test_a_file_that_does_not_say_how_many_bits_is_refused(shared, tmp_path):
    from_golden(shared / "golden_rosa1bitLM.npz", tmp_path / "model.safetensors")
    with pytest.raises(kf.KernelForgeError, match="1 bit or 4"):
        kf.load_reference(tmp_path / "model.safetensors")


def test_the_history_grows_with_the_sequence_and_nothing_else_does(tmp_path):
    model = kf.load_reference(random_rosa_lm(tmp_path / "model.safetensors"))
    _, short = model.forward([1, 2, 3])
    _, long = model.forward([1, 2, 3] * 100)
    assert short.arrays["rosa"].shape == (2, 3, 64, 1)
    assert long.arrays["rosa"].shape[:3] == (2, 3, 64)
    assert long.arrays["rosa"].shape[3] >= 10
    assert short.arrays["shift"].shape == long.arrays["shift"].shape


@pytest.mark.parametrize("activations", ["f16"])
def test_activations_that_could_change_a_sign_are_refused(tmp_path, activations):
    path = random_rosa_lm(tmp_path / "model.safetensors")
    with pytest.raises(kf.KernelForgeError, match="sign"):
        kf.load_reference(path, activations=activations)
