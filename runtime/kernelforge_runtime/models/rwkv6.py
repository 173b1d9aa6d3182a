"""RWKV-6 "Finch": RWKV-5 whose token-shift mixes and decays depend on the data.

Source: Eagle and Finch (arXiv 2404.05892).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import eagle, frame, receptance, rescale
from kernelforge_runtime.models.blocks.options import group_norm_eps
from kernelforge_runtime.models.schema import Schema, TensorReader
from kernelforge_runtime.ops import OpSet, Part
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint

SHIFTS = "wkvrg"
"""Order of the five mixes that depend on the data: slot i of the projections' input."""
SCHEMA = Schema(
    model=frame.TENSORS,
    block={
        **receptance.NORMS,
        **{f"att.time_maa_{letter}": "C" for letter in "x" + SHIFTS},
        "att.time_maa_w2": "5 M C",
        "att.time_maa_w1": "C 5M",
        "att.time_decay": "C",
        "att.time_decay_w1": "C D",
        "att.time_decay_w2": "D C",
        "att.time_faaaa": "H N",
        **receptance.SQUARES,
        "att.gate.weight": "C C",
        **eagle.HEAD_NORM,
        "ffn.time_maa_k": "C",
        "ffn.time_maa_r": "C",
        **receptance.CHANNEL_MIX,
    },
    optional={**eagle.TUNED_STATE, **frame.UNUSED},
)


@dataclass(frozen=True)
class TimeMix:
    """Handles of one block's time mix.

    Attributes:
        shift: mixes of (the LoRA's input, the token, the one before).
        mix_down: to the five mixes' LoRA.
        mix_up: from it to the five mixes side by side.
        mix: what the LoRA's result is added to.
        decay_up: from the decay's LoRA, a part of the projections.
    """

    norm: tuple[Any, Any]
    shift: Any
    mix_down: Any
    mix_up: Any
    mix: Any
    project: Any
    decay_up: Any
    decay: Any
    read_out: eagle.ReadOut

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, eps: float, block: int) -> TimeMix:
        """Hands a block's weights to the op set."""
        width, rank = read.sizes["C"], read.sizes["M"]
        one, two = "att.time_maa_w1", "att.time_maa_w2"
        down = read(one).T.reshape(len(SHIFTS), rank, width)
        # A part of its own for each, so that each one's columns start at a multiple of 32.
        apart = -(-rank // 32) * 32
        up = [
            Part(read.name(two), np.ascontiguousarray(w.T), column=i * apart)
            for i, w in enumerate(read(two))
        ]
        decay_down, decay_up = "att.time_decay_w1", "att.time_decay_w2"
        none, all_ = np.zeros(width, np.float32), np.ones(width, np.float32)
        return cls(
            norm=frame.norm(ops, read, "ln1"),
            shift=ops.vector(np.stack([read("att.time_maa_x"), none, all_])),
            mix_down=ops.matrix([Part(read.name(one), w, activation="tanh") for w in down]),
            mix_up=ops.matrix(up),
            mix=ops.vector(np.concatenate([read(f"att.time_maa_{c}") for c in SHIFTS])),
            project=ops.matrix(
                [
                    receptance.square(read, "receptance", SHIFTS.index("r")),
                    receptance.square(read, "key", SHIFTS.index("k")),
                    receptance.square(read, "value", SHIFTS.index("v")),
                    receptance.square(read, "gate", SHIFTS.index("g"), "silu"),
                    Part(
                        read.name(decay_down),
                        np.ascontiguousarray(read(decay_down).T),
                        SHIFTS.index("w"),
                        activation="tanh",
                    ),
                ]
            ),
            decay_up=ops.matrix(
                [
                    Part(
                        read.name(decay_up),
                        np.ascontiguousarray(read(decay_up).T),
                        column=4 * width,
                    )
                ]
            ),
            decay=ops.vector(read("att.time_decay")),
            read_out=eagle.ReadOut.load(ops, read, read("att.time_faaaa"), eps, block),
        )

    def add(self, ops: OpSet, x: Any, block: int) -> Any:
        """The residual stream with the output added."""
        shifted = ops.norm_shift(x, self.norm, "shift", 2 * block, self.shift)
        mixes = ops.linear(ops.linear(shifted, self.mix_down), self.mix_up, bias=self.mix)
        proj = ops.linear(ops.lerp(shifted, mixes), self.project)
        decay = ops.linear(proj, self.decay_up, bias=self.decay)
        return self.read_out.add(ops, x, proj, decay, block)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    layers: tuple[tuple[TimeMix, receptance.ChannelMix], ...]


class Rwkv6:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.time_maa_x",)

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        read = SCHEMA.read(checkpoint)
        heads, size = eagle.heads(read)
        layers, width, rank = read.layers, read.sizes["C"], read.sizes["M"]
        if read.sizes["5M"] != len(SHIFTS) * rank:
            raise ModelError(
                f"{checkpoint.path}: blocks.0.att.time_maa_w1 has {read.sizes['5M']} columns, "
                f"time_maa_w2 needs five times {rank}"
            )
        return ModelConfig(
            version="rwkv6",
            layers=layers,
            width=width,
            heads=heads,
            head_size=size,
            vocab=read.sizes["V"],
            ffn=read.sizes["F"],
            lora={"mix": rank, "decay": read.sizes["D"]},
            dtype=checkpoint.dtype("head.weight"),
            parameters=read.parameters,
            states={
                "shift": StateSpec(2 * layers, (width,)),
                "wkv": StateSpec(layers, (heads, size, size)),
            },
            group_norm_eps=group_norm_eps(checkpoint),
        )

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Weights:
        """Hands every weight to the op set, block by block."""
        read = SCHEMA.read(checkpoint)
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            tuple(
                (
                    TimeMix.load(ops, block, config.group_norm_eps, i),
                    receptance.ChannelMix.load(ops, block, "time_maa", i),
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


MODEL = Rwkv6()
