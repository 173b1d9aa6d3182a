"""RWKV-7 "Goose".

Source: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv 2503.14456).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import frame, goose
from kernelforge_runtime.models.schema import Schema
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.weights import Checkpoint

SCHEMA = Schema(
    model=frame.TENSORS,
    block={
        "ln1.weight": "C",
        "ln1.bias": "C",
        "ln2.weight": "C",
        "ln2.bias": "C",
        **goose.TIME_MIX,
        **goose.CHANNEL_MIX,
    },
    later=goose.VALUE_RESIDUAL,
    optional={**goose.TUNED_STATE, **frame.UNUSED},
)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    layers: tuple[tuple[goose.TimeMix, goose.ChannelMix], ...]


class Rwkv7:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.r_k",)

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        return goose.config(SCHEMA.read(checkpoint), "rwkv7")

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            tuple(
                (
                    goose.TimeMix.load(ops, block, i == 0, config.group_norm_eps),
                    goose.ChannelMix.load(ops, block),
                )
                for i, block in enumerate(blocks)
            ),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens: the flat list of ops of the paper."""
        x, v_first = weights.frame.enter(ops), None
        for i, (time_mix, channel_mix) in frame.each_block(ops, weights.layers):
            y, v_first = time_mix.read_out(ops, x, v_first, 2 * i, i)
            x = time_mix.add(ops, x, y)
            ops.observe(i, "time mix", x)
            x = channel_mix.add(ops, x, 2 * i + 1)
            ops.observe(i, "channel mix", x)
        return weights.frame.leave(ops, x, full_output)


MODEL = Rwkv7()
