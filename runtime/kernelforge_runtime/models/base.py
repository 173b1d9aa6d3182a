"""What every model version provides: how to recognise it, its sizes, its state, its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.state import StateSpec
from kernelforge_runtime.weights import Checkpoint


@dataclass(frozen=True)
class ModelConfig:
    """Sizes read from the weights.

    Attributes:
        version: `rwkv4`, `rwkv5.2`, `rwkv7` and so on.
        layers: L.
        width: C, `n_embd`.
        heads: H; 0 where the version has none.
        head_size: N; C = H N.
        vocab: V.
        ffn: F, width of the channel mix; 0 where there is none.
        lora: widths of the low-rank matrices by name.
        dtype: element type of the checkpoint's matrices.
        parameters: number of weights in the file.
        states: the recurrent state of one sequence by name.
        group_norm_eps: of the norm behind the recurrence.
        rosa_bits: bits of a ROSA symbol; 0 where there is no ROSA.
        f32_only: whether activations must stay float32.
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
    states: Mapping[str, StateSpec] = field(default_factory=dict)
    group_norm_eps: float = 64e-5
    rosa_bits: int = 0
    f32_only: bool = False


class ModelFile(Protocol):
    """One RWKV version.

    Attributes:
        marks: tensors by which it is known. Of the versions whose marks a file all holds, the one
            with the most is meant: a version that builds on another one marks what it adds.
    """

    marks: tuple[str, ...]

    def read_config(self, checkpoint: Checkpoint) -> ModelConfig:
        """Sizes from the tensor shapes.

        Raises:
            ModelError: tensors are missing, unknown, or contradict each other.
        """

    def load(self, ops: OpSet, checkpoint: Checkpoint, config: ModelConfig) -> Any:
        """Hands every weight to the op set; returns what `step` needs."""

    def step(self, ops: OpSet, weights: Any, full_output: bool) -> Any:
        """The logits of every sequence's last token [B, rows], or of all tokens [T, rows].

        Says `ops.observe` behind each part of a block.
        """
