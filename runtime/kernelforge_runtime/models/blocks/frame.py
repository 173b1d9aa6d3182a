"""What stands around the blocks of every language model of the family: embedding, norms, head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import OpSet, Part
from kernelforge_runtime.ops.observation import EMBEDDING

T = TypeVar("T")

TENSORS = {
    "emb.weight": "V C",
    "blocks.0.ln0.weight": "C",
    "blocks.0.ln0.bias": "C",
    "ln_out.weight": "C",
    "ln_out.bias": "C",
    "head.weight": "V C",
}
"""Outside of blocks."""
UNUSED = {"ln0.weight": "C", "ln0.bias": "C"}
"""Some trainers write `ln0` for every block; only the first one's means anything."""


@dataclass(frozen=True)
class Frame:
    """Handles of the weights outside of blocks."""

    embedding: Any
    ln0: tuple[Any, Any]
    ln_out: tuple[Any, Any]
    head: Any

    @classmethod
    def load(cls, ops: OpSet, read: TensorReader) -> Frame:
        """Hands them to the op set."""
        return cls(
            embedding=ops.table("emb.weight", read.matrix("emb.weight")),
            ln0=norm(ops, read, "blocks.0.ln0"),
            ln_out=norm(ops, read, "ln_out"),
            head=matrix(ops, read, "head.weight"),
        )

    def enter(self, ops: OpSet) -> Any:
        """The residual stream before the first block, [T, C]."""
        x = ops.layer_norm(ops.embedding(self.embedding), *self.ln0)
        ops.observe(EMBEDDING, "first norm", x)
        return x

    def leave(self, ops: OpSet, x: Any, full_output: bool) -> Any:
        """The logits."""
        return ops.linear(ops.layer_norm(x, *self.ln_out, last=not full_output), self.head)


def each_block(ops: OpSet, blocks: Iterable[T]) -> Iterator[tuple[int, T]]:
    """The blocks with their numbers; tells the op set where each begins and the last one ends."""
    for index, block in enumerate(blocks):
        ops.block(index)
        yield index, block
    ops.block(None)


def norm(ops: OpSet, read: TensorReader, name: str) -> tuple[Any, Any]:
    """Weight and bias of a layer norm."""
    return ops.vector(read(f"{name}.weight")), ops.vector(read(f"{name}.bias"))


def matrix(ops: OpSet, read: TensorReader, name: str, scale: float = 1.0) -> Any:
    """A matrix of its own, times `scale`."""
    weight = read.matrix(name) if scale == 1.0 else read(name) * scale
    return ops.matrix([Part(read.name(name), weight)])
