"""What every model version provides: how to recognise it, its sizes, its state, its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.weights import Checkpoint


@dataclass(frozen=True)
class ModelConfig:
    """Sizes read from the weights.

    Attributes:
        version: `rwkv7` and so on: the model file's name.
        layers: L.
        width: C, `n_embd`.
        heads: H.
        head_size: N; C = H N.
        vocab: V.
        ffn: F, width of the channel mix.
        lora: widths of the low-rank matrices by their letter.
        dtype: element type of the checkpoint's matrices.
        parameters: number of weights in the file.
    """

    version: str
    layers: int
    width: int
    heads: int
    head_size: int
    vocab: int
    ffn: int
    lora: Mapping[str, int] = field(default_factory=dict)
    dtype: str = "f32"
    parameters: int = 0

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Recurrent state of one sequence by name: [entries, *shape of an entry], float32."""
        per_head = (self.heads, self.head_size, self.head_size)
        return {"shift": (2 * self.layers, self.width), "wkv": (self.layers, *per_head)}


class ModelFile(Protocol):
    """One RWKV version."""

    def recognises(self, checkpoint: Checkpoint) -> bool:
        """Whether the tensor names are this version's."""

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Sizes from the tensor shapes.

        Raises:
            ModelError: tensors are missing or contradict each other.
        """

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Any:
        """Hands every weight to the op set; returns what `step` needs."""

    def step(self, ops: OpSet, weights: Any, full_output: bool) -> Any:
        """The logits of the step's last token [1, rows], or of all tokens [T, rows]."""


class TensorReader:
    """Reads tensors of a checkpoint by name, checking shapes; sizes of one are dropped.

    Raises (from every method):
        ModelError: the tensor is missing or its shape is not the one expected.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without axes of size one in front."""
        if name not in self.checkpoint:
            raise ModelError(f"{self.checkpoint.path}: tensor {name} is missing")
        shape = self.checkpoint.shape(name)
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        return tuple(shape)

    def matrix(self, name: str, rows: int, columns: int) -> NDArray[np.float32]:
        """A matrix of exactly this shape, float32."""
        stored = self.checkpoint.shape(name) if name in self.checkpoint else self.shape(name)
        if tuple(stored) != (rows, columns):
            raise ModelError(
                f"{self.checkpoint.path}: {name} has shape {list(stored)}, "
                f"expected [{rows}, {columns}]"
            )
        return self._finite(name, self.checkpoint.tensor(name))

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """A tensor of `size` values, flattened to one axis, float32."""
        shape = self.shape(name)
        if int(np.prod(shape)) != size:
            raise ModelError(
                f"{self.checkpoint.path}: {name} has shape {list(shape)}, expected {size} values"
            )
        return self._finite(name, self.checkpoint.tensor(name)).reshape(-1)

    def _finite(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise ModelError(
                f"{self.checkpoint.path}: {name} holds NaN or infinite weights; "
                "the file is damaged or its training diverged"
            )
        return values
