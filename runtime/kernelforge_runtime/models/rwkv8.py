"""RWKV-8 "Heron" rc00: RWKV-7 whose channel mix is multiplied by a row of the token's own.

Each layer has a table of such rows, as large as an embedding; it stays in the file.

Source: BlinkDL, RWKV-LM, RWKV-v8, DeepEmbed (2025-05).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kernelforge_runtime.models import rwkv7
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import frame, goose
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.weights import Checkpoint

TABLE = "ffn.enn.weight"
SCHEMA = replace(rwkv7.SCHEMA, block={**rwkv7.SCHEMA.block, TABLE: "V C"})


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    tables: Any
    layers: tuple[tuple[goose.TimeMix, goose.ChannelMix], ...]
    width: int


class Rwkv8:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.r_k", f"blocks.0.{TABLE}")

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        return goose.config(SCHEMA.read(checkpoint), "rwkv8-rc00")

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block; the tables stay where they are."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            ops.host_tables([checkpoint.lazy_rows(block.name(TABLE)) for block in blocks]),
            tuple(
                (
                    goose.TimeMix.load(ops, block, i == 0, config.group_norm_eps),
                    goose.ChannelMix.load(ops, block),
                )
                for i, block in enumerate(blocks)
            ),
            config.width,
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        rows = ops.host_rows(weights.tables)
        x, v_first = weights.frame.enter(ops), None
        for i, (time_mix, channel_mix) in frame.each_block(ops, weights.layers):
            y, v_first = time_mix.read_out(ops, x, v_first, 2 * i, i)
            x = time_mix.add(ops, x, y)
            ops.observe(i, "time mix", x)
            x = channel_mix.add(ops, x, 2 * i + 1, gate=(rows, i * weights.width))
            ops.observe(i, "channel mix", x)
        return weights.frame.leave(ops, x, full_output)


MODEL = Rwkv8()
