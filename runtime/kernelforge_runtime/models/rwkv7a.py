"""RWKV-7a: RWKV-7 with DeepEmbed, a matrix of the token's own in every channel mix.

Each layer has a table of such matrices, 32 x 32 for every token; it stays in the file.

Source: BlinkDL, RWKV-LM, RWKV-v7, rwkv7a (2025-07).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import rwkv7
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import frame, goose
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import OpSet, Part
from kernelforge_runtime.weights import Checkpoint

RANK = 32
"""The token's matrix is RANK x RANK."""
CELLS = RANK * RANK
TABLE = "ffn.s_emb.weight"
DEEP_EMBED = {
    TABLE: f"V {CELLS}",
    "ffn.s_emb_x.weight": f"{CELLS} C",
    "ffn.s1": f"C {RANK}",
    "ffn.s2": f"{RANK} F",
    "ffn.s0": "F",
}
SCHEMA = replace(rwkv7.SCHEMA, block={**rwkv7.SCHEMA.block, **DEEP_EMBED})


@dataclass(frozen=True)
class ChannelMix:
    """Handles of one block's channel mix."""

    norm: tuple[Any, Any]
    mix: Any
    key: Any
    column: int
    param: Any
    value: Any

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader) -> ChannelMix:
        """Hands a block's weights to the op set."""
        key, mix = read("ffn.key.weight"), read("ffn.x_k")
        return cls(
            norm=frame.norm(ops, read, "ln2"),
            # s1 multiplies the token itself: slot 1 is a shift by nothing.
            mix=ops.vector(np.stack([mix, np.zeros_like(mix)])),
            key=ops.matrix(
                [
                    Part(read.name("ffn.key.weight"), key, activation="relu2"),
                    Part(read.name("ffn.s1"), read("ffn.s1").T, slot=1),
                ]
            ),
            column=len(key),
            param=ops.vector(np.concatenate([read("ffn.s2"), read("ffn.s0")[None]])),
            value=frame.matrix(ops, read, "ffn.value.weight"),
        )

    def add(self, ops: OpSet, x: Any, shift: int, rows: Any, rows_column: int) -> Any:
        """The residual stream with the output added.

        Args:
            ops: computes.
            x: the residual stream, [T, C].
            shift: entry of the state `shift`.
            rows: every layer's matrix of each token side by side, [T, L CELLS].
            rows_column: where this layer's begins.
        """
        proj = ops.norm_linear(x, self.norm, "shift", shift, self.mix, self.key)
        gated = ops.deep_embed(proj, self.column, rows, rows_column, self.param)
        return ops.linear(gated, self.value, add_to=x)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    tables: Any
    from_embedding: Any
    layers: tuple[tuple[goose.TimeMix, ChannelMix], ...]


class Rwkv7a:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.r_k", f"blocks.0.{TABLE}")

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape.

        Raises:
            ModelError: no kernel is made for the channel mix's width.
        """
        config = goose.config(SCHEMA.read(checkpoint), "rwkv7a")
        if config.ffn % RANK:
            raise ModelError(
                f"{checkpoint.path}: channel mix {config.ffn} wide; widths are multiples of {RANK}"
            )
        return config

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block; the tables stay where they are."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        name = "ffn.s_emb_x.weight"
        return Weights(
            frame.Frame.load(ops, read),
            ops.host_tables([checkpoint.lazy_rows(block.name(TABLE)) for block in blocks]),
            ops.matrix([Part(block.name(name), block(name)) for block in blocks]),
            tuple(
                (
                    goose.TimeMix.load(ops, block, i == 0, config.group_norm_eps),
                    ChannelMix.load(ops, block),
                )
                for i, block in enumerate(blocks)
            ),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        x, v_first = weights.frame.enter(ops), None
        # The table of a token grows by what its embedding gives. Added for the step's tokens, and
        # not for the whole vocabulary at load, the table need never be in memory.
        rows = ops.linear(x, weights.from_embedding, bias=ops.host_rows(weights.tables))
        for i, (time_mix, channel_mix) in frame.each_block(ops, weights.layers):
            y, v_first = time_mix.read_out(ops, x, v_first, 2 * i, i)
            x = time_mix.add(ops, x, y)
            ops.observe(i, "time mix", x)
            x = channel_mix.add(ops, x, 2 * i + 1, rows, i * CELLS)
            ops.observe(i, "channel mix", x)
        return weights.frame.leave(ops, x, full_output)


MODEL = Rwkv7a()
