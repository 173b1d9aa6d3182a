"""RWKV-7 with a ROSA layer beside every time mix: the arithmetic and reversal models.

Source: BlinkDL, RWKV-LM, RWKV-v8, models of 2025-10-24, 2025-11-05 and 2026-01-23.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import goose
from kernelforge_runtime.models.blocks.affine import Affine
from kernelforge_runtime.models.blocks.frame import each_block, norm
from kernelforge_runtime.models.blocks.rosa import HISTORY, QKV, RosaQkv, history
from kernelforge_runtime.models.schema import Schema
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint

BITS = 1
SHIFTS = 3
"""Entries of the state `shift` per layer: time mix, channel mix, ROSA."""
SCHEMA = Schema(
    model={
        "e.weight": "V C",
        "lno.weight": "C",
        "lno.bias": "C",
        "o.weight": "V C",
        "o.bias": "V",
    },
    block={
        **{f"ln{i}.{name}": "C" for i in "123" for name in ("weight", "bias")},
        **goose.TIME_MIX,
        **goose.CHANNEL_MIX,
        **QKV,
    },
    later=goose.VALUE_RESIDUAL,
    spelling={
        "ln1.": "ln{n}a.",
        "ln2.": "ln{n}b.",
        "ln3.": "ln{n}c.",
        "att.": "rwkv{n}.",
        "ffn.": "ffn{n}.",
        "rosa.": "rosa{n}.",
    },
)


@dataclass(frozen=True)
class Layer:
    """Handles of one layer's weights."""

    time_mix: goose.TimeMix
    rosa: RosaQkv
    channel_mix: goose.ChannelMix


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    embedding: Any
    layers: tuple[Layer, ...]
    norm: tuple[Any, Any]
    head: Affine


class Rwkv7Rosa:
    """The model file; see ModelFile."""

    marks = ("rwkv1.r_k", "rosa1.rosa_qkv.emb")

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        read = SCHEMA.read(checkpoint)
        config = goose.config(read, "rwkv7-rosa", head="o.weight")
        return replace(
            config,
            states={
                **config.states,
                "shift": StateSpec(SHIFTS * read.layers, (config.width,)),
                HISTORY: history(read.layers, 3, config.width // BITS, BITS),
            },
            rosa_bits=BITS,
            f32_only=True,
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, layer by layer."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            ops.table("e.weight", read("e.weight")),
            tuple(
                Layer(
                    goose.TimeMix.load(ops, block, i == 0, config.group_norm_eps),
                    RosaQkv.load(ops, block, BITS),
                    goose.ChannelMix.load(ops, block),
                )
                for i, block in enumerate(blocks)
            ),
            norm(ops, read, "lno"),
            Affine.load(ops, read, ["o"]),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        x, v_first = ops.embedding(weights.embedding), None
        for i, layer in each_block(ops, weights.layers):
            # Both read the same x, and adding changes it in place: first both, then both sums.
            found = layer.rosa.read_out(ops, x, SHIFTS * i + 2, i)
            y, v_first = layer.time_mix.read_out(ops, x, v_first, SHIFTS * i, i)
            x = layer.time_mix.add(ops, x, y)
            ops.observe(i, "time mix", x)
            x = layer.rosa.add(ops, x, found)
            ops.observe(i, "rosa", x)
            x = layer.channel_mix.add(ops, x, SHIFTS * i + 1)
            ops.observe(i, "channel mix", x)
        x = ops.layer_norm(x, *weights.norm, last=not full_output)
        return weights.head.apply(ops, x)


MODEL = Rwkv7Rosa()
