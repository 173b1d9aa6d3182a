"""Models that count: an embedding, what followed the last tokens before, ROSA layers, and products.

They have neither norms nor a recurrence.

Source: BlinkDL, RWKV-LM, RWKV-v8, models of 2025-10-16 (1 bit) and 2025-10-18 (4 bits).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks.affine import Affine
from kernelforge_runtime.models.blocks.frame import each_block
from kernelforge_runtime.models.blocks.options import rosa_bits
from kernelforge_runtime.models.blocks.rosa import HISTORY, RosaDirect, history, require_width
from kernelforge_runtime.models.schema import Schema
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.weights import Checkpoint

TOKENS = "tokens"
"""The state that keeps every token id so far."""
TOKEN_BITS = 32
_LAYER = re.compile(r"rosa[0-9]+\.emb0")


def products(layers: int) -> tuple[str, ...]:
    """Names of the products between so many ROSA layers: lin, lin1, lin2 .."""
    return tuple(f"lin{i or ''}" for i in range(layers - 1))


def schema(checkpoint: Checkpoint) -> Schema:
    """The tensors of a model with as many ROSA layers as this one names."""
    layers = sum(_LAYER.fullmatch(name) is not None for name in checkpoint.names)
    between = products(layers)
    return Schema(
        model={
            "e.weight": "V C",
            "emb_rosa.emb.weight": "V C",
            **{f"{name}.weight": "C C" for name in between},
            **{f"{name}.bias": "C" for name in between},
            "o.weight": "V C",
            "o.bias": "V",
        },
        block={"rosa.emb0": "C", "rosa.emb1": "C"},
        spelling={"rosa.": "rosa{n}."},
    )


@dataclass(frozen=True)
class Weights:
    """Handles of all weights; each product but the first layer's stands before its layer."""

    embedding: Any
    followers: Any
    layers: tuple[tuple[Affine | None, RosaDirect], ...]
    head: Affine


class RosaCounting:
    """The model file; see ModelFile."""

    marks = ("emb_rosa.emb.weight", "rosa1.emb0")

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape; the bits of a symbol from what stands beside them."""
        read = schema(checkpoint).read(checkpoint)
        bits, width, layers = rosa_bits(checkpoint), require_width(read), read.layers
        return ModelConfig(
            version=f"rosa-counting-{bits}bit",
            layers=layers,
            width=width,
            heads=0,
            head_size=0,
            vocab=read.sizes["V"],
            ffn=0,
            dtype=checkpoint.dtype("o.weight"),
            parameters=read.parameters,
            states={
                TOKENS: history(1, 1, 1, TOKEN_BITS),
                HISTORY: history(layers, 1, width // bits, bits),
            },
            rosa_bits=bits,
            f32_only=True,
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set."""
        read = schema(checkpoint).read(checkpoint)
        between = [Affine.load(ops, read, [n], residual=True) for n in products(read.layers)]
        layers = [RosaDirect.load(ops, read.block(i), config.rosa_bits) for i in range(read.layers)]
        return Weights(
            ops.table("e.weight", read("e.weight")),
            ops.table("emb_rosa.emb.weight", read("emb_rosa.emb.weight")),
            tuple(zip([None, *between], layers, strict=True)),
            Affine.load(ops, read, ["o"]),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        x = ops.embedding(weights.embedding)
        following = ops.rosa(None, TOKEN_BITS, TOKENS, 0)
        x = ops.embedding(weights.followers, tokens=following, add_to=x)
        for i, (product, rosa) in each_block(ops, weights.layers):
            if product is not None:
                x = product.apply(ops, x)
                ops.observe(i, "product", x)
            x = rosa.add(ops, x, i)
            ops.observe(i, "rosa", x)
        return weights.head.apply(ops, x if full_output else ops.last_tokens(x))


MODEL = RosaCounting()
