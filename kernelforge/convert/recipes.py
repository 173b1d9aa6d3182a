"""What the tensors of a random model are drawn from, one recipe for each version.

Scales are near those of a trained model: matrices keep the size of what they multiply, decays
lie between a few and a few hundred tokens, and what is added to the residual stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from kernelforge.convert.shapes import HEAD_SIZE, ModelShape

Recipe = dict[str, tuple[tuple[int, ...], float, float]]
"""Name -> (dimensions, mean, standard deviation)."""

MIX = (0.5, 0.2)
DECAY = (-3.0, 1.0)
"""Of d in exp(-exp(d)): half of the channels forget in more than twenty tokens."""


def tensors(shape: ModelShape) -> Recipe:
    """Every tensor of a model."""
    width, vocab = shape.width, shape.vocab
    found: Recipe = {
        "emb.weight": ((vocab, width), 0.0, 0.5),
        "head.weight": ((vocab, width), 0.0, 1.0 / math.sqrt(width)),
    }
    for name in ("blocks.0.ln0", "ln_out"):
        found |= _norm(name, width)
    for layer in range(shape.layers):
        block = f"blocks.{layer}."
        for name in ("ln1", "ln2"):
            found |= _norm(block + name, width)
        mixing = BLOCKS[shape.version](shape, layer)
        found |= {block + name: recipe for name, recipe in mixing.items()}
    return found


def _norm(name: str, width: int) -> Recipe:
    return {f"{name}.weight": ((width,), 1.0, 0.02), f"{name}.bias": ((width,), 0.0, 0.02)}


def _squares(shape: ModelShape, *names: str) -> Recipe:
    """The time mix's projections and its output."""
    width, keep, add = shape.width, _keep(shape), _add(shape)
    found: Recipe = {f"att.{name}.weight": ((width, width), 0.0, keep) for name in names}
    return found | {"att.output.weight": ((width, width), 0.0, add)}


def _keep(shape: ModelShape) -> float:
    return 1.0 / math.sqrt(shape.width)


def _add(shape: ModelShape) -> float:
    return _keep(shape) / math.sqrt(2.0 * shape.layers)


def _mixes(shape: ModelShape, prefix: str, letters: str) -> Recipe:
    return {f"{prefix}{letter}": ((1, 1, shape.width), *MIX) for letter in letters}


def _gated_channel_mix(shape: ModelShape, mix: str) -> Recipe:
    """Of RWKV-4 to 6."""
    return _channel_mix(shape) | {
        **_mixes(shape, f"ffn.{mix}_", "kr"),
        "ffn.receptance.weight": ((shape.width, shape.width), 0.0, _keep(shape)),
    }


def _channel_mix(shape: ModelShape) -> Recipe:
    width, hidden = shape.width, shape.hidden
    return {
        "ffn.key.weight": ((hidden, width), 0.0, _keep(shape)),
        "ffn.value.weight": ((width, hidden), 0.0, 0.5 * _add(shape)),
    }


def _rwkv4(shape: ModelShape, layer: int) -> Recipe:
    return {
        "att.time_decay": ((shape.width,), *DECAY),
        "att.time_first": ((shape.width,), 0.3, 0.3),
        **_mixes(shape, "att.time_mix_", "kvr"),
        **_squares(shape, "receptance", "key", "value"),
        **_gated_channel_mix(shape, "time_mix"),
    }


def _rwkv5(shape: ModelShape, layer: int) -> Recipe:
    """Of 5.2."""
    heads = (shape.width // HEAD_SIZE, HEAD_SIZE)
    return {
        "att.time_decay": (heads, *DECAY),
        "att.time_faaaa": (heads, 0.3, 0.1),
        **_mixes(shape, "att.time_mix_", "kvrg"),
        **_squares(shape, "receptance", "key", "value", "gate"),
        **_norm("att.ln_x", shape.width),
        **_gated_channel_mix(shape, "time_mix"),
    }


def _rwkv6(shape: ModelShape, layer: int) -> Recipe:
    width, (mix, decay) = shape.width, shape.lora
    return {
        **_mixes(shape, "att.time_maa_", "xwkvrg"),
        "att.time_maa_w1": ((width, 5 * mix), 0.0, _keep(shape)),
        "att.time_maa_w2": ((5, mix, width), 0.0, 0.1 / math.sqrt(mix)),
        "att.time_decay": ((1, 1, width), *DECAY),
        "att.time_decay_w1": ((width, decay), 0.0, _keep(shape)),
        "att.time_decay_w2": ((decay, width), 0.0, 0.5 / math.sqrt(decay)),
        "att.time_faaaa": ((width // HEAD_SIZE, HEAD_SIZE), 0.3, 0.1),
        **_squares(shape, "receptance", "key", "value", "gate"),
        **_norm("att.ln_x", width),
        **_gated_channel_mix(shape, "time_maa"),
    }


def _rwkv7(shape: ModelShape, layer: int) -> Recipe:
    width, row = shape.width, (1, 1, shape.width)
    found = _mixes(shape, "att.x_", "rwkvag")
    middles = {"w": (-3.0, 1.5), "a": (0.0, 0.5), "v": (0.5, 0.5)}
    for letter, rank in zip("wavg", shape.lora, strict=True):
        if letter == "v" and layer == 0:
            continue  # the first layer's values are the residual themselves
        found[f"att.{letter}1"] = ((width, rank), 0.0, _keep(shape))
        found[f"att.{letter}2"] = ((rank, width), 0.0, 0.5 / math.sqrt(rank))
        if letter in middles:
            found[f"att.{letter}0"] = (row, *middles[letter])
    return {
        **found,
        "att.k_k": (row, 0.85, 0.05),
        "att.k_a": (row, 1.0, 0.05),
        "att.r_k": ((width // HEAD_SIZE, HEAD_SIZE), 0.0, 0.1),
        **_squares(shape, "receptance", "key", "value"),
        **_norm("att.ln_x", width),
        **_mixes(shape, "ffn.x_", "k"),
        **_channel_mix(shape),
    }


BLOCKS: dict[str, Callable[[ModelShape, int], Recipe]] = {
    "v4": _rwkv4,
    "v5": _rwkv5,
    "v6": _rwkv6,
    "v7": _rwkv7,
}
"""Time mix and channel mix of one block."""
