"""RWKV-4 is held to the official package's numbers and to rwkv.cpp's trained model.

Measured in NumPy: 1.7e-6 from the official logits, 1.9e-6 from its states, 1.5e-6 from the
published logits of the trained model.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import from_ggmf, from_golden
from tests.models.official import PROMPT, assert_official, one_by_one, worst
from tests.models.older_checkpoints import random_older


@pytest.fixture
def golden(shared, tmp_path):
    path = tmp_path / "model.safetensors"
    return path, from_golden(shared / "golden_v4.npz", path)


@pytest.fixture
def trained(shared, tmp_path):
    path = tmp_path / "model.safetensors"
    from_ggmf(shared / "tiny-rwkv-4v0-660K-FP32.bin", path)
    return path, np.fromfile(shared / "expected-logits-4v0-660K.bin", "<f4")


def layer_state(arrays, i):
    """The official order: att_x, aa, bb, pp, ffn_x."""
    return arrays["shift"][2 * i], *arrays["wkv4"][i], arrays["shift"][2 * i + 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_equals_the_official_logits_and_states(golden, dtype):
    path, arrays = golden
    model = kf.load_reference(path, dtype)
    assert model.config.version == "rwkv4"
    assert_official(model, arrays, layer_state)


@pytest.mark.vulkan
def test_vulkan_equals_the_official_logits_and_states(golden, device):
    path, arrays = golden
    with kf.load_model(path, device, weights="f32") as model:
        assert_official(model, arrays, layer_state)


def test_the_trained_model_gives_the_published_logits(trained):
    path, expected = trained
    model = kf.load_reference(path)
    for logits in (model.forward(PROMPT)[0], one_by_one(model, PROMPT)[0][-1]):
        assert worst(logits, expected) <= 1e-4


@pytest.mark.vulkan
def test_the_trained_model_gives_the_published_logits_on_vulkan(trained, device):
    path, expected = trained
    with kf.load_model(path, device, weights="f32") as model:
        for logits in (model.forward(PROMPT)[0], one_by_one(model, PROMPT)[0][-1]):
            assert worst(logits, expected) <= 1e-3


def test_the_state_begins_with_an_exponent_below_any_key(tmp_path):
    model = kf.load_reference(random_older(tmp_path / "model.safetensors", "rwkv4"))
    state = model.new_state()
    assert state.arrays["wkv4"].shape == (2, 3, 128)
    assert (state.arrays["wkv4"][:, 2] == np.float32(-1e30)).all()
    assert not state.arrays["wkv4"][:, :2].any()
    assert not state.arrays["shift"].any()


def test_keys_beyond_the_range_of_exp_give_no_infinities(tmp_path):
    def change(weights):
        for name in [n for n in weights if n.endswith("att.key.weight")]:
            weights[name] *= 300

    path = random_older(tmp_path / "model.safetensors", "rwkv4", change=change)
    tokens = list(range(60))
    logits, state = kf.load_reference(path).forward(tokens, full_output=True)
    exact, _ = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    assert np.abs(state.arrays["wkv4"][:, 2]).max() > 300  # exp of it is infinite
    assert np.isfinite(logits).all()
    assert worst(logits, exact) < 1e-2


def test_a_width_that_no_kernel_is_made_for_is_refused(tmp_path):
    path = random_older(tmp_path / "model.safetensors", "rwkv4", width=40)
    with pytest.raises(kf.KernelForgeError, match="width 40; widths are multiples of 32"):
        kf.load_reference(path)


def padded(weights):
    """The same channel mix with 28 more hidden channels that nothing reads."""
    for i in range(2):
        ffn = f"blocks.{i}.ffn."
        weights[f"{ffn}key.weight"] = np.pad(weights[f"{ffn}key.weight"], ((0, 28), (0, 0)))
        wider = np.pad(weights[f"{ffn}value.weight"], ((0, 0), (0, 28)))
        weights[f"{ffn}value.weight"] = np.ascontiguousarray(wider)


@pytest.fixture
def odd_and_padded(tmp_path):
    odd = random_older(tmp_path / "odd.safetensors", "rwkv4", ffn=100)
    return odd, random_older(tmp_path / "even.safetensors", "rwkv4", ffn=100, change=padded)


def test_a_channel_mix_of_odd_width_finds_its_receptance(odd_and_padded):
    odd, even = (kf.load_reference(p).forward(range(20), full_output=True) for p in odd_and_padded)
    assert worst(odd[0], even[0]) < 1e-5


@pytest.mark.vulkan
def test_a_channel_mix_of_odd_width_finds_its_receptance_on_vulkan(odd_and_padded, device):
    expected, _ = kf.load_reference(odd_and_padded[1]).forward(range(20), full_output=True)
    with kf.load_model(odd_and_padded[0], device, weights="f32") as model:
        assert worst(model.forward(range(20), full_output=True)[0], expected) < 1e-3
