"""What RWKV-4, 5 and 6 share: a channel mix gated by a receptance, and its token shift's weights.

Sources: RWKV (arXiv 2305.13048) and Eagle and Finch (arXiv 2404.05892), channel mixing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.models.blocks import frame, rescale
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import Activation, OpSet, Part

NORMS = {"ln1.weight": "C", "ln1.bias": "C", "ln2.weight": "C", "ln2.bias": "C"}
SQUARES = {
    "att.receptance.weight": "C C",
    "att.key.weight": "C C",
    "att.value.weight": "C C",
    "att.output.weight": "C C",
}
CHANNEL_MIX = {
    "ffn.key.weight": "F C",
    "ffn.receptance.weight": "C C",
    "ffn.value.weight": "C F",
}


def of_previous(read: TensorReader, names: Sequence[str]) -> NDArray[np.float32]:
    """Token-shift mixes as ops want them, [S, C].

    A `time_mix` says how much of a token is its own, a `time_maa` how much is the previous one's.
    """
    return np.stack([1 - read(n) if ".time_mix_" in n else read(n) for n in names])


def square(read: TensorReader, name: str, slot: int, activation: Activation = "none") -> Part:
    """A matrix of the time mix as a part of a stack."""
    full = f"att.{name}.weight"
    return Part(read.name(full), read.matrix(full), slot, activation=activation)


def output(ops: OpSet, read: TensorReader, name: str, block: int) -> Any:
    """A matrix whose product is added to the residual stream."""
    return frame.matrix(ops, read, name, rescale.output_scale(ops, block))


@dataclass(frozen=True)
class ChannelMix:
    """Handles of one block's channel mix.

    Attributes:
        gate: column of the hidden tensor where the receptance starts.
        halve: whether the residual stream is halved behind it.
    """

    norm: tuple[Any, Any]
    mix: Any
    hidden: Any
    value: Any
    gate: int
    halve: bool

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, mix: str, block: int) -> ChannelMix:
        """Hands a block's weights to the op set.

        Args:
            ops: takes them.
            read: of the block.
            mix: `time_mix` or `time_maa`.
            block: its number.
        """
        key, receptance = "ffn.key.weight", "ffn.receptance.weight"
        return cls(
            norm=frame.norm(ops, read, "ln2"),
            mix=ops.vector(of_previous(read, [f"ffn.{mix}_k", f"ffn.{mix}_r"])),
            hidden=ops.matrix(
                [
                    Part(read.name(key), read.matrix(key), 0, activation="relu2"),
                    Part(read.name(receptance), read.matrix(receptance), 1, activation="sigmoid"),
                ]
            ),
            value=output(ops, read, "ffn.value.weight", block),
            gate=-(-read.sizes["F"] // 32) * 32,
            halve=rescale.halves(ops, block),
        )

    def add(self, ops: OpSet, x: Any, shift: int) -> Any:
        """The residual stream with the gated output added."""
        hidden = ops.norm_linear(x, self.norm, "shift", shift, self.mix, self.hidden)
        gate = (hidden, self.gate)
        return ops.linear(hidden, self.value, add_to=x, gate=gate, halve=self.halve)
