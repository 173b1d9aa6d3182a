"""Models as llama.cpp wants them: read by its own package, and run where the engine is there."""

import importlib.util

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kernelforge_runtime as kf
from kernelforge.errors import ConvertError, PeerError
from kernelforge.peers import PeerModel, open_peer
from kernelforge.peers.gguf_file import GgufTensor, write_gguf
from kernelforge.peers.llama_cpp_file import write_llama_cpp
from kernelforge_runtime.weights import open_checkpoint
from tests.models.checkpoints import random_rwkv7
from tests.models.older_checkpoints import random_older

MODELS = {
    "rwkv7": lambda path, **sizes: random_rwkv7(path, width=64, **sizes),
    "rwkv6": lambda path, **sizes: random_older(path, "rwkv6", width=64, **sizes),
}


def read(path):
    """(facts by name, tensors by name) by llama.cpp's own reader."""
    gguf = pytest.importorskip("gguf", reason="no package gguf: the extra dev has it")
    reader = gguf.GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    return facts, {tensor.name: tensor for tensor in reader.tensors}


def written(version, tmp_path, layers=2, **sizes):
    source = MODELS[version](tmp_path / "model.safetensors", layers=layers, **sizes)
    with open_checkpoint(source) as checkpoint:
        write_llama_cpp(checkpoint, tmp_path / "model.gguf")
    return load_file(source), *read(tmp_path / "model.gguf")


def same(tensor, wanted):
    """Whether a tensor of the file has these dimensions, innermost first, and these values."""
    exact = np.asarray(wanted, tensor.data.dtype)
    return tensor.shape.tolist() == list(exact.shape[::-1]) and np.array_equal(tensor.data, exact)


@pytest.mark.parametrize("version", list(MODELS))
@pytest.mark.parametrize("layers", [1, 2])
def test_llama_cpp_finds_every_tensor_that_it_names_and_no_other(version, layers, tmp_path) -> None:
    _, facts, tensors = written(version, tmp_path, layers)
    from gguf.constants import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES

    assert facts["general.architecture"] == version
    assert facts[f"{version}.block_count"] == layers
    known = [TENSOR_NAMES[t] for t in MODEL_TENSORS[MODEL_ARCH[version.upper()]]]
    # Mixes lie in one tensor; one by one is how old files had them.
    apart = [f"blk.{{bid}}.time_mix_lerp_{letter}" for letter in "wkvrg"]
    wanted = {n.format(bid=i) for n in known if n not in apart for i in range(layers)}
    assert {name.rsplit(".", 1)[0] for name in tensors} == wanted
    assert all(tensor.data_offset % 32 == 0 for tensor in tensors.values())


def test_goose_lies_as_llama_cpp_reads_it(tmp_path) -> None:
    source, facts, tensors = written("rwkv7", tmp_path)
    one = "blocks.1.att."
    assert same(tensors["token_embd.weight"], source["emb.weight"])
    assert tensors["token_embd.weight"].data.dtype == np.float16
    assert same(tensors["token_embd_norm.bias"], source["blocks.0.ln0.bias"].reshape(-1))
    for letter in "wavg":
        for i in "12":
            found = tensors[f"blk.1.time_mix_{letter}{i}.weight"]
            assert same(found, source[f"{one}{letter}{i}"].T), letter + i
            assert found.data.dtype == np.float32
    assert same(tensors["blk.1.time_mix_r_k.weight"], source[one + "r_k"].reshape(-1))
    mixes = [source[f"{one}x_{letter}"].reshape(1, 1, -1) for letter in "rwkvag"]
    assert same(tensors["blk.1.time_mix_lerp_fused.weight"], np.stack(mixes))
    # Wanted in the first block and never used there.
    assert not tensors["blk.0.time_mix_v1.weight"].data.any()
    assert tensors["blk.0.time_mix_v1.weight"].data.shape == source["blocks.0.att.a1"].T.shape
    assert facts["rwkv7.attention.decay_lora_rank"] == source[one + "w1"].shape[1]
    assert facts["rwkv7.attention.gate_lora_rank"] == source[one + "g1"].shape[1]
    assert facts["rwkv7.feed_forward_length"] == len(source["blocks.0.ffn.key.weight"])
    assert facts["rwkv7.wkv.head_size"] == source[one + "r_k"].shape[1]
    assert facts["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize("heads", [1, 2])
def test_finch_lies_as_llama_cpp_reads_it(heads, tmp_path) -> None:
    source, facts, tensors = written("rwkv6", tmp_path, heads=heads)
    one = "blocks.1.att."
    assert same(tensors["blk.1.time_mix_w1.weight"], source[one + "time_maa_w1"].T)
    second = source[one + "time_maa_w2"]
    assert same(tensors["blk.1.time_mix_w2.weight"], second.transpose(0, 2, 1))
    assert same(tensors["blk.1.time_mix_decay_w2.weight"], source[one + "time_decay_w2"].T)
    assert same(tensors["blk.1.time_mix_decay.weight"], source[one + "time_decay"].reshape(-1))
    first = source[one + "time_faaaa"].reshape(heads, -1)
    assert same(tensors["blk.1.time_mix_first.weight"], first)
    mixes = [source[f"{one}time_maa_{letter}"].reshape(1, 1, -1) for letter in "wkvrg"]
    assert same(tensors["blk.1.time_mix_lerp_fused.weight"], np.stack(mixes))
    assert facts["rwkv6.time_mix_extra_dim"] == second.shape[1]
    assert facts["rwkv6.time_decay_extra_dim"] == source[one + "time_decay_w2"].shape[0]
    assert facts["rwkv6.wkv.head_size"] == 64 // heads


def test_a_group_norm_that_llama_cpp_does_not_know_is_refused(tmp_path) -> None:
    path = random_rwkv7(tmp_path / "model.safetensors", layers=1, width=64)
    save_file(load_file(path), path, {"group_norm_eps": "1e-5"})
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(ConvertError, match=r"group norms have eps 0\.00064, this model's 1e-05"),
    ):
        write_llama_cpp(checkpoint, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("shape", "value", "said"),
    [((2, 3), 1.0, r"has shape \(3, 2\), not \(2, 3\)"), ((3, 2), 1e9, "that f16 cannot hold")],
)
def test_a_tensor_that_cannot_be_written_leaves_no_file(shape, value, said, tmp_path) -> None:
    tensor = GgufTensor("t", "f16", shape, lambda: np.full((3, 2), value, np.float32))
    with pytest.raises(ConvertError, match=said):
        write_gguf(tmp_path / "x.gguf", {}, [tensor])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(ConvertError, match="cannot be written: No such file"):
        write_gguf(tmp_path / "none" / "x.gguf", {}, [])


@pytest.mark.parametrize("version", list(MODELS))
def test_llama_cpp_gives_our_logits(version, tmp_path) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("no package llama-cpp-python: the extra peers has it")
    path = MODELS[version](tmp_path / "model.safetensors", layers=2, vocab=96)
    model = PeerModel(path, version, 2, 64, 96)
    tokens = [5, 17, 3, 90, 41, 0, 8]
    with open_peer("llama.cpp", model, tmp_path, tmp_path, threads=1) as peer:
        found = peer.logits(tokens)
        assert np.array_equal(found, peer.logits(tokens))  # from an empty state again
        assert 0 < peer.prefill_s(tokens) < 60
        assert 0 < peer.decode_s(tokens) < 60
    ours, _ = kf.load_reference(path).forward(tokens)
    # It rounds weights and what they are multiplied with to half precision.
    assert np.abs(found - ours).max() < 0.02 * np.abs(ours).max()


def test_a_version_that_llama_cpp_does_not_run_is_said(tmp_path) -> None:
    model = PeerModel(tmp_path / "x", "rwkv5.2", 1, 64, 96)
    with (
        pytest.raises(PeerError, match=r"it runs rwkv6, rwkv7, and this model is rwkv5\.2"),
        open_peer("llama.cpp", model, tmp_path, tmp_path),
    ):
        pass
