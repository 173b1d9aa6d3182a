"""RWKV-7's time mix and channel mix; every version since builds on them.

Source: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv 2503.14456).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.blocks.frame import matrix, norm
from kernelforge_runtime.models.blocks.options import group_norm_eps
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import Activation, OpSet, Part
from kernelforge_runtime.state import StateSpec

SHIFTS = "rwkvag"
"""Order of the six token-shift mixes: slot i of the time mix's input."""
LORA_ACTIVATION: dict[str, Activation] = {"w": "tanh", "a": "none", "v": "none", "g": "sigmoid"}

TIME_MIX = {
    **{f"att.x_{letter}": "C" for letter in SHIFTS},
    "att.w0": "C",
    "att.w1": "C Dw",
    "att.w2": "Dw C",
    "att.a0": "C",
    "att.a1": "C Da",
    "att.a2": "Da C",
    "att.g1": "C Dg",
    "att.g2": "Dg C",
    "att.k_k": "C",
    "att.k_a": "C",
    "att.r_k": "H N",
    "att.receptance.weight": "C C",
    "att.key.weight": "C C",
    "att.value.weight": "C C",
    "att.output.weight": "C C",
    "att.ln_x.weight": "C",
    "att.ln_x.bias": "C",
}
VALUE_RESIDUAL = {"att.v0": "C", "att.v1": "C Dv", "att.v2": "Dv C"}
"""From the second block on: files may carry them in the first, where they mean nothing."""
CHANNEL_MIX = {"ffn.x_k": "C", "ffn.key.weight": "F C", "ffn.value.weight": "C F"}
TUNED_STATE = {"att.time_state": "H N N"}


def heads(read: TensorReader) -> tuple[int, int]:
    """(H, N).

    Raises:
        ModelError: they do not make up the width, or no kernel is made for them.
    """
    width, count, size = (read.sizes[name] for name in ("C", "H", "N"))
    path = read.checkpoint.path
    if count * size != width:
        raise ModelError(f"{path}: r_k has {count} heads of {size}, emb.weight is {width} wide")
    if width % 32 or size not in (16, 32, 64, 128):
        raise ModelError(
            f"{path}: width {width} with heads of {size}; "
            "widths are multiples of 32, heads 16, 32, 64 or 128"
        )
    return count, size


def config(read: TensorReader, version: str, head: str = "head.weight") -> ModelConfig:
    """What the sizes of a version with this time mix and channel mix say; `head` names its head."""
    count, size = heads(read)
    layers, width = read.layers, read.sizes["C"]
    return ModelConfig(
        version=version,
        layers=layers,
        width=width,
        heads=count,
        head_size=size,
        vocab=read.sizes["V"],
        ffn=read.sizes["F"],
        lora={n[1]: s for n, s in read.sizes.items() if n[0] == "D"},
        dtype=read.checkpoint.dtype(head),
        parameters=read.parameters,
        states={
            "shift": StateSpec(2 * layers, (width,)),
            "wkv": StateSpec(layers, (count, size, size)),
        },
        group_norm_eps=group_norm_eps(read.checkpoint),
    )


@dataclass(frozen=True)
class TimeMix:
    """Handles of one block's time mix."""

    norm: tuple[Any, Any]
    mix: Any
    project: Any
    expand: Any
    gates: Any
    readout: Any
    output: Any
    eps: float

    @classmethod
    def load(
        cls, ops: OpSet, read: TensorReader, first: bool, eps: float, ln: str = "ln1"
    ) -> TimeMix:
        """Hands a block's weights to the op set.

        Args:
            ops: takes them.
            read: of the block.
            first: whether it is the first block, which has no value residual.
            eps: of the group norm.
            ln: name of the norm before it.
        """
        width = read.sizes["C"]

        def square(letter: str, name: str) -> Part:
            full = f"att.{name}.weight"
            return Part(read.name(full), read.matrix(full), SHIFTS.index(letter))

        down, up, column = [], {}, 3 * width
        for letter in "wag" if first else "wavg":
            one, two = f"att.{letter}1", f"att.{letter}2"
            weight = read.matrix(one).T
            slot, activation = SHIFTS.index(letter), LORA_ACTIVATION[letter]
            down.append(Part(read.name(one), weight, slot, activation=activation))
            up[letter] = Part(read.name(two), read.matrix(two).T, column=column)
            column += -(-len(weight) // 32) * 32
        if first:  # keeps w, a, v, g in their places: a zero matrix of rank 32
            zero = np.zeros((width, 32), np.float32)
            up["v"] = Part(read.name("att.v2"), zero, column=3 * width)
        widest = max(part.weight.shape[1] for part in up.values())
        v0 = np.zeros(width, np.float32) if first else read("att.v0")
        gates = [read("att.w0"), read("att.a0"), v0, read("att.k_k"), read("att.k_a")]
        readout = [read("att.r_k").reshape(-1), read("att.ln_x.weight"), read("att.ln_x.bias")]
        per_head = (-1, read.sizes["H"], read.sizes["N"])
        return cls(
            norm=norm(ops, read, ln),
            mix=ops.vector(np.stack([read(f"att.x_{letter}") for letter in SHIFTS])),
            project=ops.matrix(
                [square("r", "receptance"), square("k", "key"), square("v", "value"), *down],
                # The widest LoRA's reach, wherever it starts, must end inside a row.
                min_rows=max(p.column for p in up.values()) + -(-widest // 32) * 32,
            ),
            expand=ops.matrix([up[letter] for letter in "wavg"]),
            gates=ops.vector(np.stack(gates).reshape(per_head)),
            readout=ops.vector(np.stack(readout).reshape(per_head)),
            output=matrix(ops, read, "att.output.weight"),
            eps=eps,
        )

    def read_out(self, ops: OpSet, x: Any, v_first: Any, shift: int, state: int) -> tuple[Any, Any]:
        """What the output matrix multiplies, and this step's first values.

        Args:
            ops: computes.
            x: the residual stream, [T, C].
            v_first: of the first block; None in it.
            shift: entry of the state `shift`.
            state: entry of the state `wkv`.
        """
        proj = ops.norm_linear(x, self.norm, "shift", shift, self.mix, self.project)
        lora = ops.linear(proj, self.expand)
        params = self.gates, self.readout
        read: tuple[Any, Any] = ops.rwkv7_mix(proj, lora, params, v_first, ("wkv", state), self.eps)
        return read

    def add(self, ops: OpSet, x: Any, y: Any) -> Any:
        """The residual stream with the output added."""
        return ops.linear(y, self.output, add_to=x)


@dataclass(frozen=True)
class ChannelMix:
    """Handles of one block's channel mix."""

    norm: tuple[Any, Any]
    mix: Any
    key: Any
    value: Any

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, ln: str = "ln2") -> ChannelMix:
        """Hands a block's weights to the op set."""
        key = Part(read.name("ffn.key.weight"), read.matrix("ffn.key.weight"), activation="relu2")
        return cls(
            norm=norm(ops, read, ln),
            mix=ops.vector(read("ffn.x_k")[None]),
            key=ops.matrix([key]),
            value=matrix(ops, read, "ffn.value.weight"),
        )

    def add(self, ops: OpSet, x: Any, shift: int, gate: tuple[Any, int] | None = None) -> Any:
        """The residual stream with the output, times the gate, added."""
        hidden = ops.norm_linear(x, self.norm, "shift", shift, self.mix, self.key)
        return ops.linear(hidden, self.value, add_to=x, gate=gate)
