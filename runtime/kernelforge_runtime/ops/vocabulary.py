"""What a model may ask for. A model file calls these; an op set does them.

`NumpyOps` computes at once and is the reference; `VulkanOps` writes down dispatches that are
recorded into a plan. A tensor is whatever the op set hands out; models only pass it on. Tensors
are float32 with shape [T, columns], or [S, T, columns] after a token shift with S mixes; T is the
number of tokens of the step, of all its sequences together. With 16-bit activations the residual
stream and the inputs of products are kept in float16; everything else stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.stored_words import StoredWords

Weight = NDArray[np.float32] | StoredMatrix | StoredWords
"""Float32 [rows, k], or a matrix of a file that becomes it when NumPy asks."""
Activation = Literal["none", "relu2", "tanh", "sigmoid", "silu"]
Tensor = Any
Vector = Any
Matrix = Any
HostTable = Any
RESCALE_EVERY = 6
"""Blocks after which RWKV-4 to 6 halve a float16 residual stream, so that it never overflows."""


class TensorName(str):
    """A checkpoint's name of a tensor that knows the layer it belongs to; None of no layer."""

    layer: int | None

    def __new__(cls, name: str, layer: int | None = None) -> TensorName:
        """The name, and the layer from 0."""
        made = super().__new__(cls, name)
        made.layer = layer
        return made


@dataclass(frozen=True)
class Part:
    """One weight of a matrix that several weights are stacked into.

    Attributes:
        name: the checkpoint's name, for messages; a TensorName says of which layer it is.
        weight: [rows, k]; a row gives one output column.
        slot: which of the S stacked inputs it multiplies.
        column: the input column that its first k belongs to.
        activation: applied to its outputs, after the bias.
    """

    name: str
    weight: Weight
    slot: int = 0
    column: int = 0
    activation: Activation = "none"

    @property
    def layer(self) -> int | None:
        """The layer that it belongs to."""
        return getattr(self.name, "layer", None)

    def without_weight(self) -> Part:
        """What is said of it, for whoever keeps the weight in another form."""
        return replace(self, weight=np.zeros((0, 0), np.float32))


class LazyRows(Protocol):
    """A table that stays in its file: mapped, not read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[V, columns]."""

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """These rows in float32, [len(ids), columns]."""


class OpSet(Protocol):
    """The vocabulary, in groups: weights, tokens, norms and mixes, products, recurrences, ROSA.

    Attributes:
        activations: F32 or F16, the residual stream's type.
    """

    activations: DType

    def block(self, index: int | None) -> None:
        """What follows belongs to this block of the model, or to none: for whoever counts."""

    def observe(self, block: int, part: str, x: Tensor, scale: float = 1.0) -> None:
        """Behind this part of the block the residual stream is x [T, C]: for whoever looks at it.

        Every model file says so behind each part; see `ops.observation`.

        Args:
            block: from 0.
            part: `time mix`, `channel mix` and so on.
            x: the stream.
            scale: what x is multiplied by to be what it is in float32; see RESCALE_EVERY.
        """

    # Weights

    def vector(self, values: NDArray[np.float32]) -> Vector:
        """Keeps a small tensor of weights in float32."""

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> Matrix:
        """Keeps a stack of weights in the model's weight format.

        Each part's rows start at a multiple of 32; `min_rows` pads the stack's outputs.
        """

    def table(self, name: str, rows: Weight) -> Matrix:
        """Keeps an embedding table [V, C] in the model's weight format."""

    def host_tables(self, tables: Sequence[LazyRows]) -> HostTable:
        """Keeps tables of one shape, one per layer, where they are: in host memory."""

    # Tokens

    def embedding(
        self, table: Matrix, tokens: Tensor | None = None, add_to: Tensor | None = None
    ) -> Tensor:
        """The rows of the step's tokens, or of `tokens` (as `rosa` gives them), [T, C].

        `add_to` is added to.
        """

    def host_rows(self, tables: HostTable) -> Tensor:
        """The rows of the step's tokens of every table side by side, [T, layers * columns]."""

    # Norms and mixes

    def layer_norm(
        self, x: Tensor, weight: Vector, bias: Vector, eps: float = 1e-5, last: bool = False
    ) -> Tensor:
        """Layer norm of every row; with `last`, of every sequence's last token only, [B, C]."""

    def token_shift(self, x: Tensor, state: str, index: int, mix: Vector) -> Tensor:
        """X + (x_before - x) mix for every mix of [S, C]; carries on entry `index` of `state`."""

    def norm_shift(
        self, x: Tensor, norm: tuple[Vector, Vector], state: str, index: int, mix: Vector
    ) -> Tensor:
        """Layer norm (weight, bias), then token shift: [S, T, C]; the carry is the normed token."""

    def lerp(self, shifted: Tensor, mix: Tensor) -> Tensor:
        """RWKV-6's mixes that depend on the data: x + (x_before - x) mix_s, [S, T, C].

        Args:
            shifted: [3, T, C]; slot 1 is x, slot 2 x_before (a token shift by 0 and by 1).
            mix: [T, S C].
        """

    def last_tokens(self, x: Tensor) -> Tensor:
        """Of the rows [T, C] those of every sequence's last token, [B, C]."""

    # Products

    def linear(
        self,
        x: Tensor,
        matrix: Matrix,
        add_to: Tensor | None = None,
        bias: Vector | Tensor | None = None,
        gate: tuple[Tensor, int] | None = None,
        halve: bool = False,
    ) -> Tensor:
        """Every part's product with its slot and columns of x, [T, rows].

        out = activation(product + bias) * gate + add_to, and half of that with `halve`.

        Args:
            x: [T, columns] or [S, T, columns]; must not be `add_to`.
            matrix: from `matrix`.
            add_to: [T, rows], changed in place and returned.
            bias: a vector [rows], or a tensor [T, rows] with a bias for each token.
            gate: a tensor and the column of it where row 0's factor stands.
            halve: see RESCALE_EVERY.
        """

    def norm_linear(
        self,
        x: Tensor,
        norm: tuple[Vector, Vector],
        state: str,
        index: int,
        mix: Vector,
        matrix: Matrix,
    ) -> Tensor:
        """`norm_shift`, then `linear` of all its mixes: [T, rows]; the arguments are theirs."""

    # Recurrences

    def wkv4(self, proj: Tensor, param: Vector, state: str, index: int) -> Tensor:
        """RWKV-4: r wkv, [T, C].

        Args:
            proj: [T, >= 3 C]: r (after its sigmoid), k, v side by side.
            param: [2, C]: w = -exp(time_decay), u = time_first.
            state: entries [3, C]: numerator, denominator, exponent.
            index: of the entry.
        """

    def wkv6(
        self, proj: Tensor, decay: Vector | Tensor, bonus: Vector, state: str, index: int
    ) -> Tensor:
        """RWKV-5 and 6: the read-out before the update, with a bonus for the token, [T, C].

        Args:
            proj: [T, >= 3 C]: r, k, v side by side.
            decay: d of w = exp(-exp(d)): a vector [H, N] (RWKV-5) or a tensor [T, C] (RWKV-6).
            bonus: u, [H, N].
            state: entries [H, N, N], [value][key].
            index: of the entry.
        """

    def head_norm(
        self, y: Tensor, param: Vector, eps: float, gate: tuple[Tensor, int] | None = None
    ) -> Tensor:
        """Group norm over each head, weight and bias `param` [2, H, N], times the gate, [T, C]."""

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

    def rwkv7_mix(
        self,
        proj: Tensor,
        lora: Tensor,
        params: tuple[Vector, Vector],
        v_first: Tensor | None,
        state: tuple[str, int],
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """The last three in one: (what the output matrix multiplies [T, C], v_first [T, C]).

        Args:
            proj: see rwkv7_gates.
            lora: see rwkv7_gates.
            params: of rwkv7_gates [5, H, N] and of rwkv7_readout [3, H, N].
            v_first: None in the first layer.
            state: name and entry, as of wkv7.
            eps: of the group norm.
        """

    def deep_embed(
        self, proj: Tensor, column: int, rows: Tensor, rows_column: int, param: Vector
    ) -> Tensor:
        """RWKV-7a: k (((s E) s2) + s0), [T, F].

        Args:
            proj: [T, columns]: k in the first F columns, s (32 values) at `column`.
            column: see proj.
            rows: [T, columns]: E, 32 x 32 row-major, at `rows_column`.
            rows_column: see rows.
            param: [33, F]: s2, then s0.
        """

    # ROSA: streams of symbols, and what followed the longest match

    def rosa(self, x: Tensor | None, bits: int, state: str, index: int) -> Tensor:
        """The symbol that followed the most recent longest match of each stream, u32 [T, streams].

        A stream without a match gives NO_MATCH.

        Args:
            x: [T, R streams bits]: R = 1 (queries, keys and values are one) or 3 (q, k, v side by
                side); a symbol's bit is set where x > 0, the lowest column is its lowest bit.
                None: the one stream of the step's token ids (R = 1).
            bits: per symbol: 1 or 4; 32 for token ids.
            state: entries u32 [R, streams, words]: the history, packed.
            index: of the entry.
        """

    def rosa_values(
        self, symbols: Tensor, values: Vector, bits: int, add_to: Tensor | None = None
    ) -> Tensor:
        """Symbols back to channels, [T, C].

        Args:
            symbols: from `rosa`, u32 [T, C / bits].
            values: [3, C]: of a set bit, of a clear one, and of a stream without a match.
            bits: per symbol.
            add_to: [T, C], changed in place and returned.
        """
