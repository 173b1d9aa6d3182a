"""ROSA: for every stream of symbols, what followed the longest earlier match of its suffix.

Source: BlinkDL, RWKV-8 "Heron" and ROSA (https://github.com/BlinkDL/RWKV-LM, RWKV-v8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelforge_runtime.abi.rosa import symbols_per_word
from kernelforge_runtime.dtypes import U32
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.blocks.affine import Affine
from kernelforge_runtime.models.blocks.frame import norm
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec

HISTORY = "rosa"
"""The state that keeps every symbol so far, one entry per layer."""
QKV = {
    **{f"rosa.x_{letter}": "C" for letter in "qkv"},
    **{f"rosa.{letter}.weight": "C C" for letter in "qkvo"},
    **{f"rosa.{letter}.bias": "C" for letter in "qkvo"},
    "rosa.rosa_qkv.emb": "C",
}


def history(layers: int, roles: int, streams: int, bits: int) -> StateSpec:
    """The state of so many layers: packed symbols, which grow with the sequence.

    Args:
        layers: of them.
        roles: 3 where queries, keys and values are streams of their own, else 1.
        streams: of each role.
        bits: of a symbol.
    """
    shape = (roles, streams, 1)
    return StateSpec(layers, shape, U32, symbols_per_word=symbols_per_word(bits))


def require_width(read: TensorReader) -> int:
    """C.

    Raises:
        ModelError: no kernel is made for it.
    """
    width = read.sizes["C"]
    if width % 32:
        raise ModelError(f"{read.checkpoint.path}: width {width}; widths are multiples of 32")
    return width


@dataclass(frozen=True)
class RosaQkv:
    """Handles of one layer with queries, keys and values of their own."""

    norm: tuple[Any, Any]
    mix: Any
    project: Affine
    values: Any
    output: Affine
    bits: int

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, bits: int, ln: str = "ln3") -> RosaQkv:
        """Hands a block's weights to the op set; `ln` names the norm before the layer."""
        value = read("rosa.rosa_qkv.emb")
        # Without a match 1-bit models were trained on a clear bit, 4-bit models on nothing.
        unmatched = -value if bits == 1 else np.zeros_like(value)
        return cls(
            norm=norm(ops, read, ln),
            mix=ops.vector(np.stack([read(f"rosa.x_{letter}") for letter in "qkv"])),
            project=Affine.load(ops, read, [f"rosa.{letter}" for letter in "qkv"]),
            values=ops.vector(np.stack([value, -value, unmatched])),
            output=Affine.load(ops, read, ["rosa.o"]),
            bits=bits,
        )

    def read_out(self, ops: OpSet, x: Any, shift: int, state: int) -> Any:
        """What the output matrix multiplies, [T, C].

        Args:
            ops: computes.
            x: the residual stream, [T, C].
            shift: entry of the state `shift`.
            state: entry of the history.
        """
        shifted = ops.norm_shift(x, self.norm, "shift", shift, self.mix)
        symbols = ops.rosa(self.project.apply(ops, shifted), self.bits, HISTORY, state)
        return ops.rosa_values(symbols, self.values, self.bits)

    def add(self, ops: OpSet, x: Any, y: Any) -> Any:
        """The residual stream with the output added."""
        return self.output.apply(ops, y, add_to=x)


@dataclass(frozen=True)
class RosaDirect:
    """Handles of one layer whose queries, keys and values are the residual stream itself."""

    values: Any
    bits: int

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader, bits: int) -> RosaDirect:
        """Hands a block's weights to the op set."""
        clear, is_set = read("rosa.emb0"), read("rosa.emb1")
        # Without a match 1-bit models were trained on nothing, 4-bit models on clear bits.
        unmatched = np.zeros_like(clear) if bits == 1 else clear
        return cls(ops.vector(np.stack([is_set, clear, unmatched])), bits)

    def add(self, ops: OpSet, x: Any, state: int) -> Any:
        """The residual stream with what followed added; `state` is the history's entry."""
        symbols = ops.rosa(x, self.bits, HISTORY, state)
        return ops.rosa_values(symbols, self.values, self.bits, add_to=x)
