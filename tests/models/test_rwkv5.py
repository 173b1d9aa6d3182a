"""RWKV-5.0, 5.1 and 5.2 are held to the official package's numbers and to rwkv.cpp's trained model.

Measured in NumPy: 4.1e-6 from the official logits of 5.1, which is the worst, and 3.9e-6 from its
states; 3.1e-6 from the published logits of the trained model.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import from_ggmf, from_golden
from tests.models.official import PROMPT, assert_official, one_by_one, worst
from tests.models.older_checkpoints import random_older

GOLDEN = {"rwkv5.0": "golden_v5.npz", "rwkv5.1": "golden_v5.1.npz", "rwkv5.2": "golden_v5.2.npz"}
TOKENS = [5, 17, 17, 3, 90, 5, 41, 0, 17, 17, 3]
EPS = {"group_norm_eps": "1e-5"}
"""The trained model's, which is not that of released ones."""


@pytest.fixture(params=GOLDEN)
def golden(request, shared, tmp_path):
    path = tmp_path / "model.safetensors"
    return request.param, path, from_golden(shared / GOLDEN[request.param], path)


@pytest.fixture
def trained(shared, tmp_path):
    path = tmp_path / "model.safetensors"
    from_ggmf(shared / "tiny-rwkv-5v2-730K-FP32.bin", path, EPS)
    return path, np.fromfile(shared / "expected-logits-5v2-730K.bin", "<f4")


def layer_state(arrays, i):
    """The official order: att_x, S as [key][value], ffn_x."""
    return arrays["shift"][2 * i], arrays["wkv"][i].swapaxes(1, 2), arrays["shift"][2 * i + 1]


def logits_of(path):
    return kf.load_reference(path).forward(TOKENS, full_output=True)[0]


def refused(path, match):
    with pytest.raises(kf.KernelForgeError, match=match) as caught:
        kf.load_reference(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_equals_the_official_logits_and_states(golden, dtype):
    version, path, arrays = golden
    model = kf.load_reference(path, dtype)
    assert model.config.version == version
    assert_official(model, arrays, layer_state)


@pytest.mark.vulkan
def test_vulkan_equals_the_official_logits_and_states(golden, device):
    _, path, arrays = golden
    with kf.load_model(path, device, weights="f32") as model:
        assert_official(model, arrays, layer_state)


def test_the_trained_model_gives_the_published_logits(trained):
    path, expected = trained
    model = kf.load_reference(path)
    assert model.config.group_norm_eps == 1e-5
    for logits in (model.forward(PROMPT)[0], one_by_one(model, PROMPT)[0][-1]):
        assert worst(logits, expected) <= 1e-4


def test_the_trained_model_is_wrong_with_the_epsilon_of_released_ones(shared, tmp_path, trained):
    """By 1.1: the epsilon is part of a model, so the file must be able to say it."""
    path = tmp_path / "without.safetensors"
    from_ggmf(shared / "tiny-rwkv-5v2-730K-FP32.bin", path)
    assert worst(kf.load_reference(path).forward(PROMPT)[0], trained[1]) > 0.5


@pytest.mark.vulkan
def test_the_trained_model_gives_the_published_logits_on_vulkan(trained, device):
    path, expected = trained
    with kf.load_model(path, device, weights="f32") as model:
        for logits in (model.forward(PROMPT)[0], one_by_one(model, PROMPT)[0][-1]):
            assert worst(logits, expected) <= 1e-3


@pytest.mark.parametrize("version", ["rwkv5.0", "rwkv5.1"])
def test_a_bonus_may_be_stored_as_it_is_or_as_its_logarithm(tmp_path, version):
    def change(weights):
        for i in range(2):
            first = weights.pop(f"blocks.{i}.att.time_first")
            weights[f"blocks.{i}.att.time_faaaa"] = np.exp(first)

    log = random_older(tmp_path / "log.safetensors", version)
    raw = random_older(tmp_path / "raw.safetensors", version, change=change)
    assert kf.load_reference(raw).config.version == version
    assert worst(logits_of(raw), logits_of(log)) < 1e-6


def test_a_decay_per_head_is_one_of_all_its_channels(tmp_path):
    """5.1 with its scalars written out is 5.2."""

    def change(weights):
        for i in range(2):
            att = f"blocks.{i}.att."
            first = np.exp(weights.pop(f"{att}time_first"))
            weights[f"{att}time_faaaa"] = np.repeat(first, 64).reshape(2, 64)
            weights[f"{att}time_decay"] = np.repeat(weights[f"{att}time_decay"], 64).reshape(2, 64)

    scalars = random_older(tmp_path / "scalars.safetensors", "rwkv5.1")
    written_out = random_older(tmp_path / "written_out.safetensors", "rwkv5.1", change=change)
    assert kf.load_reference(written_out).config.version == "rwkv5.2"
    assert worst(logits_of(written_out), logits_of(scalars)) < 1e-6


def test_a_single_head_with_one_decay_per_channel_is_5_2(tmp_path):
    path = random_older(tmp_path / "model.safetensors", "rwkv5.2", width=64, heads=1)
    config = kf.load_reference(path).config
    assert (config.version, config.heads, config.head_size) == ("rwkv5.2", 1, 64)


def test_two_bonuses_are_refused(tmp_path):
    def change(weights):
        for i in range(2):
            weights[f"blocks.{i}.att.time_faaaa"] = np.ones(2, np.float32)

    path = random_older(tmp_path / "model.safetensors", "rwkv5.1", change=change)
    refused(path, r"blocks\.0 has both att\.time_first and att\.time_faaaa")


def test_a_gate_without_its_mix_is_refused(tmp_path):
    def change(weights):
        del weights["blocks.1.att.time_mix_g"]

    path = random_older(tmp_path / "model.safetensors", "rwkv5.2", change=change)
    refused(path, r"blocks\.1\.att\.time_mix_g is missing")


def test_blocks_of_different_versions_are_refused(tmp_path):
    def change(weights):
        del weights["blocks.1.att.gate.weight"]
        weights["blocks.0.att.time_decay"] = np.zeros(2, np.float32)

    path = random_older(tmp_path / "model.safetensors", "rwkv5.1", change=change)
    refused(path, r"blocks\.1\.att\.gate\.weight is missing")


def test_heads_that_do_not_make_up_the_width_are_refused(tmp_path):
    def change(weights):
        for i in range(2):
            for name in ("time_decay", "time_first"):
                weights[f"blocks.{i}.att.{name}"] = np.zeros(3, np.float32)

    path = random_older(tmp_path / "model.safetensors", "rwkv5.0", change=change)
    refused(path, r"has 3 heads, but emb\.weight is 128 wide")
