"""Weights that the device rounds: bit for bit what the host makes of them, refused as it would."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.cli.main import main
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.dtypes import BF16, F16, F32, decode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops import device_rounding
from kernelforge_runtime.ops.device_rounding import DeviceRounding
from kernelforge_runtime.plan.arena import Arena
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.vk.buffer import Buffer
from tests.models.checkpoints import random_rwkv7
from tests.models.versions import VERSIONS

TOKENS = [5, 17, 3, 80, 3]


@pytest.fixture
def kernels(llvmpipe):
    return KernelSet.open(llvmpipe.info)


@pytest.fixture
def rounded(monkeypatch):
    """Groups of four words that each load rounded."""
    counts, run = [], DeviceRounding.run

    def counting(self):
        run(self)
        counts.append(self.quads)

    monkeypatch.setattr(DeviceRounding, "run", counting)
    return counts


def in_bfloat(path, change=None, dtype="bf16", **sizes):
    """A file of a random model in a format; `change(weights)` may spoil it first."""
    plain = random_rwkv7(path.with_suffix(".f32.safetensors"), change=change, **sizes)
    assert main(["convert", str(plain), str(path), "--dtype", dtype, "--quiet"]) == 0
    return path


def by_host(monkeypatch):
    monkeypatch.setattr(DeviceRounding, "takes", lambda self, form, weights: False)


def memory_of(model):
    """The model's weights, block by block, as words."""
    return [block.download(np.uint32) for block in model._ops.store.arena._blocks]


def tiny(weights):
    """Smaller ones than float16's normal numbers, which are rounded, and zeros of both signs."""
    for name in ("head.weight", "blocks.1.ffn.key.weight", "emb.weight"):
        flat = weights[name].reshape(-1)
        flat[::3] *= 1e-5
        flat[::7] = -0.0


@pytest.mark.parametrize("quant", [None, "0:q8,1-:f16,emb:f16", "f32,head:f16", "bf16,emb:f16"])
def test_the_device_rounds_as_the_host_does(
    quant, tmp_path, llvmpipe, kernels, monkeypatch, rounded
):
    path = in_bfloat(tmp_path / "m.safetensors", tiny, vocab=300)
    weights = None if quant else "f16"
    with kf.load_model(path, llvmpipe, kernels, weights, quant=quant) as model:
        logits, _ = model.forward(TOKENS)
        found = memory_of(model)
    by_host(monkeypatch)
    with kf.load_model(path, llvmpipe, kernels, weights, quant=quant) as model:
        np.testing.assert_array_equal(model.forward(TOKENS)[0], logits)
        for block, expected in zip(found, memory_of(model), strict=True):
            np.testing.assert_array_equal(block, expected)
    assert rounded[0] > 0 and rounded[1] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_rounded_alike(version, tmp_path, llvmpipe, kernels, monkeypatch, rounded):
    plain, path = VERSIONS[version](tmp_path / "plain.safetensors"), tmp_path / "m.safetensors"
    assert main(["convert", str(plain), str(path), "--dtype", "bf16", "--quiet"]) == 0
    found = []
    for _ in range(2):
        with kf.load_model(path, llvmpipe, kernels, "f16") as model:
            found.append((model.forward(TOKENS)[0], memory_of(model)))
        by_host(monkeypatch)
    np.testing.assert_array_equal(*(logits for logits, _ in found))
    for blocks in zip(*(memory for _, memory in found), strict=True):
        np.testing.assert_array_equal(*blocks)
    made = version.startswith("rosa-counting")  # its matrices are made from the file's
    assert (rounded[0] == 0) == made and rounded[1] == 0


def test_where_the_host_does_not_see_the_memory_too(
    tmp_path, llvmpipe, kernels, monkeypatch, rounded
):
    path = in_bfloat(tmp_path / "m.safetensors", tiny)
    with kf.load_model(path, llvmpipe, kernels, "f16") as model:
        expected, _ = model.forward(TOKENS)
    bind, visible = Buffer._bind, ("step inputs", "staging")
    monkeypatch.setattr(
        Buffer, "_bind", lambda self, mapped, doing: bind(self, self.name in visible, doing)
    )
    with kf.load_model(path, llvmpipe, kernels, "f16") as model:
        assert not any(b.mapped is not None for b in model._ops.store.arena._blocks)
        np.testing.assert_array_equal(model.forward(TOKENS)[0], expected)
    assert rounded[0] == rounded[1] > 0


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_other_files_are_the_hosts(dtype, tmp_path, llvmpipe, kernels, rounded):
    path = in_bfloat(tmp_path / "m.safetensors", dtype=dtype)
    kf.load_model(path, llvmpipe, kernels, "f16").close()
    assert rounded == [0]


@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_other_formats_are_not_rounded(weights, tmp_path, llvmpipe, kernels, rounded):
    path = in_bfloat(tmp_path / "m.safetensors")
    kf.load_model(path, llvmpipe, kernels, weights).close()
    assert rounded == [0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (65536.0, r"head.weight does not fit f16 \(a value is beyond 65504\): use bf16 or f32$"),
        (-1e30, r"head.weight does not fit f16 \(a value is beyond 65504\): use bf16 or f32$"),
    ],
)
@pytest.mark.parametrize("where", ["device", "host"])
def test_what_does_not_fit_is_named_by_either(
    where, value, message, tmp_path, llvmpipe, kernels, monkeypatch
):
    def spoil(weights):
        weights["head.weight"][7, 5] = value

    path = in_bfloat(tmp_path / "m.safetensors", spoil)
    if where == "host":
        by_host(monkeypatch)
    with pytest.raises(ModelError, match=message):
        kf.load_model(path, llvmpipe, kernels, "f16")


def test_kernels_without_it_leave_it_to_the_host(tmp_path, llvmpipe, kernels, rounded, monkeypatch):
    path, find = in_bfloat(tmp_path / "m.safetensors"), KernelSet.find
    monkeypatch.setattr(
        KernelSet,
        "find",
        lambda self, family, *how: (
            None if family == device_rounding.FAMILY else find(self, family, *how)
        ),
    )
    kf.load_model(path, llvmpipe, kernels, "f16").close()
    assert rounded == [0]


def test_pieces_one_behind_the_other_go_together_and_large_ones_in_parts(
    llvmpipe, kernels, rng, monkeypatch
):
    monkeypatch.setattr(device_rounding, "MOST_QUADS", 64)
    arena, bits = Arena(llvmpipe, "weights", 1 << 14), {}
    rounding = DeviceRounding(llvmpipe, kernels)
    try:
        for i, nbytes in enumerate((256, 1024, 512, 3072, 20_000, 256)):
            piece = arena.take(nbytes)
            bits[i] = piece, rng.integers(0, 0x4780, piece.nbytes // 2, dtype=np.uint16)
            piece.upload(bits[i][1])
            if i != 2:  # what is between is not touched
                rounding.add(piece)
        assert len(rounding._spans) == 4
        rounding.run()
        for i, (piece, before) in bits.items():
            found = piece.download(np.uint16, (piece.nbytes // 2,))
            after = before if i == 2 else decode(before, BF16).astype(np.float16).view(np.uint16)
            np.testing.assert_array_equal(found, after)
        assert rounding.quads == sum(p.nbytes // 16 for i, (p, _) in bits.items() if i != 2)
        rounding.run()  # nothing is left
        assert rounding.quads == sum(p.nbytes // 16 for i, (p, _) in bits.items() if i != 2)
    finally:
        arena.close()


def test_only_bfloat16_on_the_way_to_float16_is_taken(llvmpipe, kernels):
    rounding, raw = DeviceRounding(llvmpipe, kernels), np.zeros((2, 4), np.uint16)
    own = StoredMatrix(raw, "bf16", "m: a")
    assert rounding.takes(F16, [own, own.T, own[:1]])
    assert not rounding.takes(F32, [own]) and not rounding.takes(BF16, [own])
    assert not rounding.takes(F16, [own, StoredMatrix(raw.view(np.float16), "f16", "m: b")])
    assert not rounding.takes(F16, [own, np.zeros((2, 4), np.float32)])


@pytest.mark.parametrize(
    ("weights", "quant", "wanted"),
    [("f16", None, True), ("q8", None, True), ("bf16", None, False), ("f32", "head:f16", True)],
)
def test_tuning_a_model_tunes_what_its_loading_calls(
    weights, quant, wanted, tmp_path, llvmpipe, kernels
):
    path = random_rwkv7(tmp_path / "m.safetensors")
    with kf.load_model(path, llvmpipe, kernels, weights, quant=quant) as model:
        found = model.load_problems()
    assert found == wanted * [("bf16_to_f16", "f16", Problem(N=1 << 19), 1)]
