"""RWKV-4 "Dove": a weighted mean of all past values, one decay per channel.

Source: RWKV: Reinventing RNNs for the Transformer Era (arXiv 2305.13048).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import frame, receptance, rescale
from kernelforge_runtime.models.schema import Schema, TensorReader
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint

SHIFTS = "rkv"
"""Order of the token-shift mixes, and of the projections."""
NOTHING_YET = -1e30
"""The exponent before the first token: any key is larger, and e to it is zero."""
SCHEMA = Schema(
    model=frame.TENSORS,
    block={
        **receptance.NORMS,
        "att.time_decay": "C",
        "att.time_first": "C",
        **{f"att.time_mix_{letter}": "C" for letter in SHIFTS},
        **receptance.SQUARES,
        "ffn.time_mix_k": "C",
        "ffn.time_mix_r": "C",
        **receptance.CHANNEL_MIX,
    },
    optional=frame.UNUSED,
)


@dataclass(frozen=True)
class TimeMix:
    """Handles of one block's time mix."""

    norm: tuple[Any, Any]
    mix: Any
    project: Any
    decay_bonus: Any
    output: Any

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, block: int) -> TimeMix:
        """Hands a block's weights to the op set."""
        decay = -np.exp(read("att.time_decay"))
        return cls(
            norm=frame.norm(ops, read, "ln1"),
            mix=ops.vector(receptance.of_previous(read, [f"att.time_mix_{c}" for c in SHIFTS])),
            project=ops.matrix(
                [
                    receptance.square(read, "receptance", 0, "sigmoid"),
                    receptance.square(read, "key", 1),
                    receptance.square(read, "value", 2),
                ]
            ),
            decay_bonus=ops.vector(np.stack([decay, read("att.time_first")])),
            output=receptance.output(ops, read, "att.output.weight", block),
        )

    def add(self, ops: OpSet, x: Any, block: int) -> Any:
        """The residual stream with the output added."""
        proj = ops.norm_linear(x, self.norm, "shift", 2 * block, self.mix, self.project)
        return ops.linear(ops.wkv4(proj, self.decay_bonus, "wkv4", block), self.output, add_to=x)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    layers: tuple[tuple[TimeMix, receptance.ChannelMix], ...]


class Rwkv4:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.time_mix_k",)

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        read = SCHEMA.read(checkpoint)
        layers, width = read.layers, read.sizes["C"]
        if width % 32:
            raise ModelError(f"{checkpoint.path}: width {width}; widths are multiples of 32")
        return ModelConfig(
            version="rwkv4",
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
                "wkv4": StateSpec(layers, (3, width), initial=(0.0, 0.0, NOTHING_YET)),
            },
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            tuple(
                (
                    TimeMix.load(ops, block, i),
                    receptance.ChannelMix.load(ops, block, "time_mix", i),
                )
                for i, block in enumerate(blocks)
            ),
        )

    def step(self, ops: OpSet, weights: Weights, full_output: bool) -> Any:
        """One step over the op set's tokens."""
        x = weights.frame.enter(ops)
        for i, (time_mix, channel_mix) in frame.each_block(ops, weights.layers):
            x = time_mix.add(ops, x, i)
            ops.observe(i, "time mix", x, rescale.stream_scale(ops, i))
            x = channel_mix.add(ops, x, 2 * i + 1)
            ops.observe(i, "channel mix", x, rescale.stream_scale(ops, i + 1))
        return weights.frame.leave(ops, x, full_output)


MODEL = Rwkv4()
