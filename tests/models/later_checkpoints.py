"""Random models of the versions since RWKV-7, small enough for every test."""

import numpy as np
from safetensors.numpy import save_file

from tests.models.checkpoints import random_rwkv7


def random_rwkv7a(target, layers=2, width=64, vocab=96, seed=0):
    """Writes an RWKV-7a."""
    rng = np.random.default_rng(seed + 100)

    def add(weights):
        for i in range(layers):
            ffn = f"blocks.{i}.ffn."
            weights[f"{ffn}s_emb.weight"] = _normal(rng, vocab, 1024, scale=0.3)
            weights[f"{ffn}s_emb_x.weight"] = _normal(rng, 1024, width, scale=0.3 / width**0.5)
            weights[f"{ffn}s1"] = _normal(rng, width, 32, scale=1 / width**0.5)
            weights[f"{ffn}s2"] = _normal(rng, 32, 4 * width, scale=0.2)
            weights[f"{ffn}s0"] = 1 + _normal(rng, 1, 1, 4 * width, scale=0.1)

    return random_rwkv7(target, layers, width, vocab, seed, add)


def random_rwkv8(target, layers=2, width=64, vocab=96, seed=0):
    """Writes an RWKV-8 rc00."""
    rng = np.random.default_rng(seed + 100)

    def add(weights):
        for i in range(layers):
            table = 1 + _normal(rng, vocab, width, scale=0.3)
            weights[f"blocks.{i}.ffn.enn.weight"] = table

    return random_rwkv7(target, layers, width, vocab, seed, add)


def random_rosa_lm(target, bits=1, layers=2, width=64, vocab=96, seed=0):
    """Writes a pure ROSA language model."""
    rng = np.random.default_rng(seed)
    weights = {
        "emb.weight": _normal(rng, vocab, width),
        "head.weight": _normal(rng, vocab, width, scale=2 / width**0.5),
        **_norm(rng, "blocks.0.ln0", width),
        **_norm(rng, "ln_out", width),
    }
    for i in range(layers):
        block = f"blocks.{i}."
        weights |= _norm(rng, f"{block}ln2", width) | _norm(rng, f"{block}ln3", width)
        weights |= _rosa_qkv(rng, f"{block}rosa.", width)
        weights |= _channel_mix(rng, f"{block}ffn.", width)
    save_file(weights, str(target), {"rosa_bits": str(bits)})
    return target


def random_rosa_counting(target, bits=1, layers=2, width=32, vocab=11, seed=0):
    """Writes a counting model."""
    rng = np.random.default_rng(seed)
    weights = {
        "e.weight": _normal(rng, vocab, width),
        "emb_rosa.emb.weight": _normal(rng, vocab, width),
        "o.weight": _normal(rng, vocab, width),
        "o.bias": _normal(rng, vocab),
    }
    for i in range(layers):
        weights[f"rosa{i + 1}.emb0"] = _normal(rng, 1, 1, width)
        weights[f"rosa{i + 1}.emb1"] = _normal(rng, 1, 1, width)
    for i in range(layers - 1):
        weights[f"lin{i or ''}.weight"] = _normal(rng, width, width, scale=1 / width**0.5)
        weights[f"lin{i or ''}.bias"] = _normal(rng, width)
    save_file(weights, str(target), {"rosa_bits": str(bits)})
    return target


def random_rwkv7_rosa(target, layers=2, width=64, vocab=13, seed=0):
    """Writes an RWKV-7 with ROSA layers beside its time mixes; heads of 64."""
    rng = np.random.default_rng(seed)
    weights = {
        "e.weight": _normal(rng, vocab, width),
        "o.weight": _normal(rng, vocab, width, scale=2 / width**0.5),
        "o.bias": _normal(rng, vocab),
        **_norm(rng, "lno", width),
    }

    def rename(found):
        for i in range(layers):
            for name, values in found.items():
                for part, spelled in (("att.", f"rwkv{i + 1}."), ("ffn.", f"ffn{i + 1}.")):
                    if name.startswith(f"blocks.{i}.{part}"):
                        weights[spelled + name.removeprefix(f"blocks.{i}.{part}")] = values
        found.clear()
        for n in range(1, layers + 1):
            for which in "abc":
                weights.update(_norm(rng, f"ln{n}{which}", width))
            weights.update(_rosa_qkv(rng, f"rosa{n}.", width))
        found.update(weights)

    return random_rwkv7(target, layers, width, vocab, seed, rename)


def _normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def _norm(rng, name, width):
    return {
        f"{name}.weight": 1 + _normal(rng, width, scale=0.1),
        f"{name}.bias": _normal(rng, width, scale=0.1),
    }


def _channel_mix(rng, name, width):
    return {
        f"{name}x_k": rng.random((1, 1, width)).astype(np.float32),
        f"{name}key.weight": _normal(rng, 4 * width, width, scale=0.7 / width**0.5),
        f"{name}value.weight": _normal(rng, width, 4 * width, scale=0.3 / width**0.5),
    }


def _rosa_qkv(rng, name, width):
    weights = {f"{name}rosa_qkv.emb": _normal(rng, 1, 1, width)}
    for letter in "qkv":
        weights[f"{name}x_{letter}"] = rng.random((1, 1, width)).astype(np.float32)
    for letter in "qkvo":
        weights[f"{name}{letter}.weight"] = _normal(rng, width, width, scale=1 / width**0.5)
        weights[f"{name}{letter}.bias"] = _normal(rng, width, scale=0.3)
    return weights
