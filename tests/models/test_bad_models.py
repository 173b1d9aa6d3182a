"""Models that are not what they claim are refused with one line that names what is wrong."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import random_rwkv7


def refused(path, match):
    with pytest.raises(kf.KernelForgeError, match=match) as caught:
        kf.load_reference(path)
    assert "\n" not in str(caught.value)


def spoiled(tmp_path, change):
    return random_rwkv7(tmp_path / "model.safetensors", change=change)


def test_nan_weights_are_named(tmp_path):
    def change(weights):
        weights["blocks.1.ffn.key.weight"][3, 5] = np.nan

    refused(spoiled(tmp_path, change), r"blocks\.1\.ffn\.key\.weight holds NaN")


def test_an_unknown_version_says_what_was_found(tmp_path):
    def change(weights):
        kept = {"emb.weight": weights["emb.weight"], "layers.0.wq": weights["head.weight"]}
        weights.clear()
        weights.update(kept)

    refused(spoiled(tmp_path, change), "not an RWKV model of a known version")


def test_a_later_version_built_on_rwkv7_is_not_taken_for_it(tmp_path):
    def change(weights):
        weights["blocks.0.qkv.k_emb.weight"] = weights["emb.weight"]

    refused(spoiled(tmp_path, change), r"qkv\.k_emb\.weight is no tensor of this version")


def test_a_missing_tensor_is_named(tmp_path):
    refused(
        spoiled(tmp_path, lambda w: w.pop("blocks.1.att.k_a")), r"blocks\.1\.att\.k_a is missing"
    )


def test_contradicting_shapes_are_named(tmp_path):
    def change(weights):
        weights["blocks.0.att.output.weight"] = np.zeros((64, 32), np.float32)

    refused(spoiled(tmp_path, change), r"output\.weight has shape \[64, 32\], expected \[64, 64\]")


def test_a_missing_block_is_named(tmp_path):
    def change(weights):
        for name in [n for n in weights if n.startswith("blocks.0.") and "att.r_k" not in n]:
            if "ln0" not in name and "ffn.key" not in name:
                del weights[name]

    refused(spoiled(tmp_path, change), r"blocks\.0\.ln1\.weight, .* are missing")


def test_weights_beyond_f16_are_refused_for_f16_only(tmp_path, llvmpipe):
    def change(weights):
        weights["head.weight"][0, 0] = 1e6

    path = spoiled(tmp_path, change)
    with pytest.raises(kf.KernelForgeError, match=r"head\.weight does not fit f16"):
        kf.load_model(path, llvmpipe, weights="f16")
    with kf.load_model(path, llvmpipe, weights="bf16") as model:
        logits, _ = model.forward([1])
    assert np.isfinite(logits).all()


def test_a_failed_load_leaves_nothing_on_the_device(tmp_path, llvmpipe):
    def change(weights):
        weights["ln_out.bias"] = np.zeros(3, np.float32)

    before = llvmpipe.live_objects
    path = spoiled(tmp_path, change)
    with pytest.raises(kf.KernelForgeError, match=r"ln_out\.bias"):
        kf.load_model(path, llvmpipe)
    assert llvmpipe.live_objects == before


def test_an_unknown_weight_format_lists_the_known_ones(tmp_path, llvmpipe):
    with pytest.raises(kf.KernelForgeError, match="f32, bf16, f16"):
        kf.load_model(spoiled(tmp_path, None), llvmpipe, weights="int3")


@pytest.mark.parametrize("spoil", ["truncate", "shape", "nan", "foreign"])
def test_a_wrong_state_file_is_refused(tmp_path, spoil):
    model = kf.load_reference(random_rwkv7(tmp_path / "model.safetensors"))
    _, state = model.forward([1, 2])
    path = tmp_path / "state.safetensors"
    if spoil == "shape":
        other = kf.load_reference(random_rwkv7(tmp_path / "other.safetensors", layers=1))
        _, state = other.forward([1])
    if spoil == "nan":
        state.arrays["wkv"][0, 0, 0, 0] = np.nan
    state.save(path)
    if spoil == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    if spoil == "foreign":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(kf.KernelForgeError, match="state"):
        model.load_state(path)
