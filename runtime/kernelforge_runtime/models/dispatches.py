"""How many dispatches a step takes, and how many of them each block of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kernelforge_runtime.ops.builder import Call


@dataclass(frozen=True)
class DispatchCount:
    """Dispatches of one step.

    Attributes:
        total: of the whole step.
        blocks: of each block, in order.
    """

    total: int
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, calls: Sequence[Call]) -> DispatchCount:
        """Counts the calls of a step."""
        by_block = Counter(call.block for call in calls if call.block is not None)
        return cls(len(calls), tuple(by_block[block] for block in sorted(by_block)))

    @property
    def per_block(self) -> float:
        """Mean over the blocks; 0 where no call says which block it is of."""
        return sum(self.blocks) / len(self.blocks) if self.blocks else 0.0

    def __str__(self) -> str:
        text = f"{self.total} dispatches"
        if not self.blocks:
            return text
        low, high = min(self.blocks), max(self.blocks)
        return f"{text}, {low if low == high else f'{low} to {high}'} per layer"
