"""RWKV-8 rc00 is held to its definition, written down once more."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.models import plain
from tests.models.later_checkpoints import random_rwkv8
from tests.models.plain import weights_of

TOKENS = [5, 17, 17, 3, 90, 5, 41, 0, 17, 17, 3, 8, 60]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return random_rwkv8(tmp_path_factory.mktemp("rwkv8") / "model.safetensors", layers=3)


@pytest.fixture(scope="module")
def expected(model_path):
    with open_checkpoint(model_path) as read:
        x, v_first = weights_of(read, "emb.")["weight"][TOKENS], None
        x = plain.layer_norm(x, **weights_of(read, "blocks.0.ln0."))
        for i in range(3):
            block = f"blocks.{i}."
            ffn = weights_of(read, f"{block}ffn.")
            normed = plain.layer_norm(x, **weights_of(read, f"{block}ln1."))
            y, v_first = plain.time_mix(weights_of(read, f"{block}att."), normed, v_first)
            x = x + y
            normed = plain.layer_norm(x, **weights_of(read, f"{block}ln2."))
            x = x + plain.channel_mix(ffn, normed) * ffn["enn.weight"][TOKENS]
        x = plain.layer_norm(x, **weights_of(read, "ln_out."))
        return x @ weights_of(read, "head.")["weight"].T


def worst(a, b):
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def test_numpy_equals_the_definition(model_path, expected):
    model = kf.load_reference(model_path, np.float64)
    assert model.config.version == "rwkv8-rc00"
    logits, _ = model.forward(TOKENS, full_output=True)
    assert worst(logits, expected) < 1e-5


def test_numpy_token_by_token_equals_the_definition(model_path, expected):
    model, state = kf.load_reference(model_path), None
    for token, row in zip(TOKENS, expected, strict=True):
        logits, state = model.forward([token], state)
        assert worst(logits, row) < 1e-4


@pytest.mark.vulkan
def test_vulkan_equals_the_definition(model_path, expected, device):
    with kf.load_model(model_path, device, weights="f32") as model:
        logits, _ = model.forward(TOKENS, full_output=True)
        assert worst(logits, expected) < 1e-3
        state = None
        for token, row in zip(TOKENS, expected, strict=True):
            logits, state = model.forward([token], state)
            assert worst(logits, row) < 1e-3


def test_without_its_table_in_one_block_the_file_is_refused(model_path, tmp_path):
    from safetensors.numpy import save_file

    with open_checkpoint(model_path) as read:
        weights = {n: read.tensor(n) for n in read if n != "blocks.2.ffn.enn.weight"}
    save_file(weights, str(tmp_path / "model.safetensors"))
    with pytest.raises(kf.KernelForgeError, match=r"blocks\.2\.ffn\.enn\.weight is missing"):
        kf.load_reference(tmp_path / "model.safetensors")
