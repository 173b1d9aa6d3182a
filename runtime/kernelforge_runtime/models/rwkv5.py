"""RWKV-5 "Eagle" in its three forms: heads with matrices as state, decays learned once for all.

| version | gate | decay and bonus |
|---------|------|-----------------|
| 5.0     | no   | one per head    |
| 5.1     | yes  | one per head    |
| 5.2     | yes  | one per channel |

Source: Eagle and Finch (arXiv 2404.05892).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks import eagle, frame, receptance, rescale
from kernelforge_runtime.models.blocks.options import group_norm_eps
from kernelforge_runtime.models.schema import Schema, TensorReader
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint

PROJECTIONS = {"r": "receptance", "k": "key", "v": "value", "g": "gate"}
"""Mix -> matrix, in the order of the projections."""
RAW_BONUS, LOG_BONUS = "att.time_faaaa", "att.time_first"
"""The bonus as it is, or its logarithm: files of 5.0 and 5.1 have either."""


def minor(checkpoint: Checkpoint) -> str:
    """`5.0`, `5.1` or `5.2`."""
    decay = "blocks.0.att.time_decay"
    if "blocks.0.att.gate.weight" not in checkpoint:
        return "5.0"
    shape = checkpoint.shape(decay) if decay in checkpoint else ()
    return "5.2" if len(shape) > 1 and shape[1] > 1 else "5.1"


def schema(checkpoint: Checkpoint) -> Schema:
    """The tensors of the file's form.

    Raises:
        ModelError: it holds a bonus twice.
    """
    form = minor(checkpoint)
    raw, log = f"blocks.0.{RAW_BONUS}" in checkpoint, f"blocks.0.{LOG_BONUS}" in checkpoint
    if raw and log:
        raise ModelError(
            f"{checkpoint.path}: blocks.0 has both {LOG_BONUS} and {RAW_BONUS}; "
            "RWKV-5 has one of them"
        )
    per_head = "H N" if form == "5.2" else "H"
    gated = form != "5.0"
    return Schema(
        model=frame.TENSORS,
        block={
            **receptance.NORMS,
            "att.time_decay": per_head,
            (LOG_BONUS if log and form != "5.2" else RAW_BONUS): per_head,
            **{f"att.time_mix_{letter}": "C" for letter in ("rkvg" if gated else "rkv")},
            **receptance.SQUARES,
            **({"att.gate.weight": "C C"} if gated else {}),
            **eagle.HEAD_NORM,
            "ffn.time_mix_k": "C",
            "ffn.time_mix_r": "C",
            **receptance.CHANNEL_MIX,
        },
        optional={**eagle.TUNED_STATE, **frame.UNUSED},
    )


@dataclass(frozen=True)
class TimeMix:
    """Handles of one block's time mix."""

    norm: tuple[Any, Any]
    mix: Any
    project: Any
    decay: Any
    read_out: eagle.ReadOut

    @classmethod
    def load(
        cls, ops: OpSet, read: TensorReader, heads: tuple[int, int], eps: float, block: int
    ) -> TimeMix:
        """Hands a block's weights to the op set."""

        def per_channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
            whole = values.reshape(heads[0], -1)
            return np.ascontiguousarray(np.broadcast_to(whole, heads))

        letters = [c for c, name in PROJECTIONS.items() if f"att.{name}.weight" in read]
        bonus = read(RAW_BONUS) if RAW_BONUS in read else np.exp(read(LOG_BONUS))
        return cls(
            norm=frame.norm(ops, read, "ln1"),
            mix=ops.vector(receptance.of_previous(read, [f"att.time_mix_{c}" for c in letters])),
            project=ops.matrix(
                [
                    receptance.square(read, PROJECTIONS[c], i, "silu" if c == "g" else "none")
                    for i, c in enumerate(letters)
                ]
            ),
            decay=ops.vector(per_channel(read("att.time_decay"))),
            read_out=eagle.ReadOut.load(ops, read, per_channel(bonus), eps, block),
        )

    def add(self, ops: OpSet, x: Any, block: int) -> Any:
        """The residual stream with the output added."""
        proj = ops.norm_linear(x, self.norm, "shift", 2 * block, self.mix, self.project)
        return self.read_out.add(ops, x, proj, self.decay, block)


@dataclass(frozen=True)
class Weights:
    """Handles of all weights."""

    frame: frame.Frame
    layers: tuple[tuple[TimeMix, receptance.ChannelMix], ...]


class Rwkv5:
    """The model file; see ModelFile."""

    marks = ("blocks.0.att.time_mix_k", "blocks.0.att.ln_x.weight")

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Every size from a tensor's shape."""
        read = schema(checkpoint).read(checkpoint)
        heads, size = eagle.heads(read)
        layers, width = read.layers, read.sizes["C"]
        return ModelConfig(
            version=f"rwkv{minor(checkpoint)}",
            layers=layers,
            width=width,
            heads=heads,
            head_size=size,
            vocab=read.sizes["V"],
            ffn=read.sizes["F"],
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
        read = schema(checkpoint).read(checkpoint)
        heads = config.heads, config.head_size
        blocks = [read.block(i) for i in range(read.layers)]
        return Weights(
            frame.Frame.load(ops, read),
            tuple(
                (
                    TimeMix.load(ops, block, heads, config.group_norm_eps, i),
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


MODEL = Rwkv5()
