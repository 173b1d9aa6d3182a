"""Language models of ROSA and channel mixes alone, with symbols of 1 bit or of 4.

Source: BlinkDL, RWKV-LM, RWKV-v8, models of 2026-02-12 and 2026-02-22.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import frame, goose
from kernelforge_runtime.models.blocks.options import rosa_bits
from kernelforge_runtime.models.blocks.rosa import (
    HISTORY,
    QKV,
    RosaQkv,
    history,
    require_width,
)
from kernelforge_runtime.models.schema import Schema
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint

SCHEMA = Schema(
    model=frame.TENSORS,
    block={
        "ln2.weight": "C",
        "ln2.bias": "C",
        "ln3.weight": "C",
        "ln3.bias": "C",
        **QKV,
        **goose.CHANNEL_MIX,
    },
    optional=frame.UNUSED,
)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    layers: tuple[tuple[RosaQkv, goose.ChannelMix], ...]


class RosaLm:
    """The model file; see ModelFile."""

    marks = ("blocks.0.rosa.rosa_qkv.emb",)

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape; the bits of a symbol from what stands beside them."""
        read = SCHEMA.read(checkpoint)
        bits, width, layers = rosa_bits(checkpoint), require_width(read), read.layers
        return ModelConfig(
            version=f"rosa-lm-{bits}bit",
            layers=layers,
            width=width,
            heads=0,
            head_size=0,
            vocab=read.sizes["V"],
            ffn=read.sizes["F"],
            dtype=checkpoint.dtype("head.weight"),
            parameters=read.parameters,
            states={
                "shift": StateSpec(2 * layers, (width,)),
                HISTORY: history(layers, 3, width // bits, bits),
            },
            rosa_bits=bits,
            f32_only=True,
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            tuple(
                (RosaQkv.load(ops, block, config.rosa_bits), goose.ChannelMix.load(ops, block))
                for block in blocks
            ),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        x = weights.frame.enter(ops)
        for i, (rosa, channel_mix) in frame.each_block(ops, weights.layers):
            x = rosa.add(ops, x, rosa.read_out(ops, x, 2 * i, i))
            ops.observe(i, "rosa", x)
            x = channel_mix.add(ops, x, 2 * i + 1)
            ops.observe(i, "channel mix", x)
        return weights.frame.leave(ops, x, full_output)


MODEL = RosaLm()
