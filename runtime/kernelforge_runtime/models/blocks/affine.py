"""Products with a bias, which ROSA versions have where other versions have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.models.schema import TensorReader
from kernelforge_runtime.ops import OpSet, Part


@dataclass(frozen=True)
class Affine:
    """Handles of a matrix, or several side by side, and of its bias."""

    matrix: Any
    bias: Any

    @classmethod
    def load(
        cls, ops: OpSet, read: TensorReader, names: Sequence[str], residual: bool = False
    ) -> Affine:
        """Hands `<name>.weight` and `<name>.bias` to the op set; the i-th multiplies slot i.

        With `residual` a square matrix adds its input to its output.
        """
        parts, bias = [], []
        for slot, name in enumerate(names):
            weight = read(f"{name}.weight")
            if residual:
                # x + W x + b as (W + I) x + b: a product may not be added to its own input.
                weight = weight + np.eye(len(weight), dtype=np.float32)
            parts.append(Part(read.name(f"{name}.weight"), weight, slot))
            bias.append(_padded(read(f"{name}.bias")))
        return cls(ops.matrix(parts), ops.vector(np.concatenate(bias)))

    def apply(self, ops: OpSet, x: Any, add_to: Any = None) -> Any:
        """The products, [T, rows]."""
        return ops.linear(x, self.matrix, add_to=add_to, bias=self.bias)


def _padded(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the rows that its part takes in the stack."""
    return np.pad(bias, (0, -len(bias) % ROUTE_ROWS))
