"""What RWKV-5 and 6 share: heads with matrices as state, read before a token is written.

Source: Eagle and Finch (arXiv 2404.05892), time mixing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.blocks import receptance
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import OpSet

HEAD_NORM = {"att.ln_x.weight": "C", "att.ln_x.bias": "C"}
TUNED_STATE = {"att.time_state": "H N N"}
HEAD_SIZES = (8, 16, 32, 64, 128)


def heads(read: TensorReader) -> tuple[int, int]:
    """(H, N).

    Raises:
        ModelError: they do not make up the width, or no kernel is made for them.
    """
    width, count = read.sizes["C"], read.sizes["H"]
    size = read.sizes.get("N", width // count)
    path = read.checkpoint.path
    if count * size != width:
        of = f" of {size}" if "N" in read.sizes else ""
        raise ModelError(f"{path}: has {count} heads{of}, but emb.weight is {width} wide")
    if width % 32 or size not in HEAD_SIZES:
        raise ModelError(
            f"{path}: width {width} with heads of {size}; widths are multiples of 32, "
            f"heads {', '.join(map(str, HEAD_SIZES))}"
        )
    return count, size


@dataclass(frozen=True)
class ReadOut:
    """Handles of what follows a block's projections.

    Attributes:
        gate: column of the projections where the gate starts; None where there is none.
    """

    bonus: Any
    norm: Any
    output: Any
    eps: float
    gate: int | None

    @classmethod
    def load(
        cls,
        ops: OpSet,
        read: TensorReader,
        bonus: NDArray[np.float32],
        eps: float,
        block: int,
    ) -> ReadOut:
        """Hands a block's weights to the op set.

        Args:
            ops: takes them.
            read: of the block.
            bonus: u, [H, N].
            eps: of the head norm.
            block: its number.
        """
        norm = np.stack([read("att.ln_x.weight"), read("att.ln_x.bias")])
        return cls(
            bonus=ops.vector(bonus),
            norm=ops.vector(norm.reshape(2, *bonus.shape)),
            output=receptance.output(ops, read, "att.output.weight", block),
            eps=eps,
            gate=3 * read.sizes["C"] if "att.gate.weight" in read else None,
        )

    def add(self, ops: OpSet, x: Any, proj: Any, decay: Any, state: int) -> Any:
        """The residual stream with the time mix's output added.

        Args:
            ops: computes.
            x: the residual stream, [T, C].
            proj: r, k, v and the gate, side by side.
            decay: see OpSet.wkv6.
            state: entry of the state `wkv`.
        """
        y = ops.wkv6(proj, decay, self.bonus, "wkv", state)
        gate = None if self.gate is None else (proj, self.gate)
        y = ops.head_norm(y, self.norm, self.eps, gate)
        return ops.linear(y, self.output, add_to=x)
