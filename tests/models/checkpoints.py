"""Model files for tests: from golden vectors, from rwkv.cpp's tiny models, and random ones."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.runtime.ggmf import read_ggmf

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
DEMO = next((ROOT / "runtime" / "demo").glob("*.safetensors"), None)


def from_golden(path, target):
    """Writes the weights of a golden file as safetensors; returns its other arrays."""
    golden = np.load(path)
    weights = {n[2:]: np.ascontiguousarray(golden[n]) for n in golden.files if n.startswith("w.")}
    save_file(weights, str(target))
    return {n: golden[n] for n in golden.files if not n.startswith("w.")}


def from_ggmf(path, target, metadata=None):
    """Writes an rwkv.cpp model as safetensors with the official names."""
    weights = {n: np.ascontiguousarray(a) for n, a in read_ggmf(path).items()}
    save_file(weights, str(target), metadata)


def random_rwkv7(target, layers=2, width=64, vocab=96, seed=0, change=None):
    """Writes a random RWKV-7 with head size 64; `change(weights)` may spoil it first."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def norm(name):
        return {
            f"{name}.weight": 1 + normal(width, scale=0.1),
            f"{name}.bias": normal(width, scale=0.1),
        }

    weights = {
        "emb.weight": normal(vocab, width, scale=0.5),
        **norm("blocks.0.ln0"),
        **norm("ln_out"),
    }
    weights["head.weight"] = normal(vocab, width, scale=2 / width**0.5)
    for i in range(layers):
        block = f"blocks.{i}."
        weights |= norm(block + "ln1") | norm(block + "ln2") | norm(block + "att.ln_x")
        for letter in "rwkvag":
            weights[f"{block}att.x_{letter}"] = rng.random((1, 1, width)).astype(np.float32)
        for letter, rank in (("w", 32), ("a", 32), ("v", 16), ("g", 48)):
            weights[f"{block}att.{letter}1"] = normal(width, rank, scale=0.5 / width**0.5)
            weights[f"{block}att.{letter}2"] = normal(rank, width, scale=0.5 / rank**0.5)
        for name in ("w0", "a0", "v0", "k_k", "k_a"):
            weights[f"{block}att.{name}"] = normal(1, 1, width, scale=0.5)
        weights[f"{block}att.r_k"] = normal(width // 64, 64, scale=0.1)
        for name in ("receptance", "key", "value", "output"):
            weights[f"{block}att.{name}.weight"] = normal(width, width, scale=0.7 / width**0.5)
        weights[f"{block}ffn.x_k"] = rng.random((1, 1, width)).astype(np.float32)
        weights[f"{block}ffn.key.weight"] = normal(4 * width, width, scale=0.7 / width**0.5)
        weights[f"{block}ffn.value.weight"] = normal(width, 4 * width, scale=0.3 / width**0.5)
    if change is not None:
        change(weights)
    save_file(weights, str(target))
    return target
