"""What a model may ask for. A model file calls these; an op set does them.

`NumpyOps` computes at once and is the reference; `VulkanOps` writes down dispatches that are
recorded into a plan. A tensor is whatever the op set hands out; models only pass it on. Tensors are
float32 with shape [T, columns], or [S, T, columns] after a token shift with S mixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Activation = Literal["none", "relu2", "tanh", "sigmoid", "add"]
Tensor = Any
Vector = Any
Matrix = Any


@dataclass(frozen=True)
class Part:
    """One weight of a matrix that several weights are stacked into.

    Attributes:
        name: the checkpoint's name, for messages.
        weight: float32 [rows, k]; a row gives one output column.
        slot: which of the S stacked inputs it multiplies.
        column: the input column that its first k belongs to.
        activation: applied to its outputs.
    """

    name: str
    weight: NDArray[np.float32]
    slot: int = 0
    column: int = 0
    activation: Activation = "none"


class OpSet(Protocol):
    """The vocabulary. T is the number of tokens of the step that is being computed."""

    def vector(self, values: NDArray[np.float32]) -> Vector:
        """Keeps a small tensor of weights in float32."""

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> Matrix:
        """Keeps a stack of weights in the model's weight format.

        Each part's rows start at a multiple of 32; `min_rows` pads the stack's outputs.
        """

    def table(self, name: str, rows: NDArray[np.float32]) -> Matrix:
        """Keeps an embedding table [V, C] in the model's weight format."""

    def embedding(self, table: Matrix) -> Tensor:
        """The rows of the step's tokens, [T, C]."""

    def layer_norm(
        self, x: Tensor, weight: Vector, bias: Vector, eps: float = 1e-5, last: bool = False
    ) -> Tensor:
        """Layer norm of every row; with `last`, of the step's last token only, [1, C]."""

    def token_shift(self, x: Tensor, state: str, index: int, mix: Vector) -> Tensor:
        """X + (x_before - x) mix for every mix of [S, C]; carries on entry `index` of `state`."""

    def norm_shift(
        self, x: Tensor, norm: tuple[Vector, Vector], state: str, index: int, mix: Vector
    ) -> Tensor:
        """Layer norm (weight, bias), then token shift: [S, T, C]; the carry is the normed token."""

    def linear(self, x: Tensor, matrix: Matrix, add_to: Tensor | None = None) -> Tensor:
        """Every part's product with its slot and columns of x, [T, rows]; `add_to` is added to."""

    def rwkv7_gates(
        self, proj: Tensor, lora: Tensor, param: Vector, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(inputs of wkv7 [6, T, C], v_first [T, C]); v_first is None in the first layer."""

    def wkv7(self, s: Tensor, state: str, index: int) -> Tensor:
        """The recurrence over the step's tokens, [T, C]; entry `index` of `state` moves on."""

    def rwkv7_readout(
        self, y: Tensor, s: Tensor, lora: Tensor, param: Vector, eps: float
    ) -> Tensor:
        """Group norm, bonus and gate, [T, C]."""
