"""The vocabulary in NumPy: what the kernels are held to, and the way to run without Vulkan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.dtypes import F32, DType, decode, encode
from kernelforge_runtime.ops.vocabulary import Activation, Part

Array = NDArray[Any]
ROUTE_ROWS = 32


@dataclass(frozen=True)
class StackedParts:
    """A matrix: its parts' weights with the first row of each, and the number of outputs."""

    parts: tuple[tuple[int, Array, Part], ...]
    rows: int


class NumpyOps:
    """Computes each op at once.

    Weights are rounded to `weights` and held in `dtype`, in which everything is computed:
    float32 to run, float64 as an oracle.

    Attributes:
        state: arrays by name, updated in place.
        tokens: the step's token ids, [T].
    """

    def __init__(self, dtype: DTypeLike = np.float32, weights: DType = F32) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.weights = weights
        self.state: Mapping[str, Array] = {}
        self.tokens: Array = np.zeros(0, np.int64)

    def vector(self, values: NDArray[np.float32]) -> Array:
        """Keeps a small tensor of weights."""
        return values.astype(self.dtype)

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> StackedParts:
        """Keeps a stack of weights, rounded to the weight format."""
        rows, kept = 0, []
        for part in parts:
            kept.append((rows, self._round(part.weight), part))
            rows += -(-len(part.weight) // ROUTE_ROWS) * ROUTE_ROWS
        return StackedParts(tuple(kept), max(rows, min_rows))

    def table(self, name: str, rows: NDArray[np.float32]) -> Array:
        """Keeps an embedding table."""
        return self._round(rows)

    def _round(self, weight: NDArray[np.float32]) -> Array:
        exact = (
            weight if self.weights == F32 else decode(encode(weight, self.weights), self.weights)
        )
        return exact.astype(self.dtype)

    def embedding(self, table: Array) -> Array:
        """Plain indexing, [T, C]."""
        return table[self.tokens]

    def layer_norm(
        self, x: Array, weight: Array, bias: Array, eps: float = 1e-5, last: bool = False
    ) -> Array:
        """(x - mean) / sqrt(var + eps) w + b, biased variance."""
        if last:
            x = x[-1:]
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normed: Array = centred / np.sqrt(variance + self.dtype.type(eps)) * weight + bias
        return normed

    def token_shift(self, x: Array, state: str, index: int, mix: Array) -> Array:
        """[S, T, C]; the carry becomes the last token."""
        carry = self.state[state][index]
        delta = np.concatenate([carry[None], x[:-1]]) - x
        carry[...] = x[-1]
        mixed: Array = x + delta * mix[:, None, :]
        return mixed

    def norm_shift(
        self, x: Array, norm: tuple[Array, Array], state: str, index: int, mix: Array
    ) -> Array:
        """The one after the other, [S, T, C]."""
        return self.token_shift(self.layer_norm(x, *norm), state, index, mix)

    def linear(self, x: Array, matrix: StackedParts, add_to: Array | None = None) -> Array:
        """[T, rows]; rows between parts are zero."""
        stacked = x if x.ndim == 3 else x[None]
        out = np.zeros((stacked.shape[1], matrix.rows), self.dtype)
        for row, weight, part in matrix.parts:
            rows, k = weight.shape
            columns = stacked[part.slot, :, part.column : part.column + k]
            out[:, row : row + rows] = activate(part.activation, columns @ weight.T)
        if add_to is not None:
            return out[:, : add_to.shape[1]] + add_to
        return out

    def rwkv7_gates(
        self, proj: Array, lora: Array, param: Array, v_first: Array | None
    ) -> tuple[Array, Array]:
        """Decay, rate, value mix and the key's changes.

        Source: RWKV-7 "Goose" (arXiv 2503.14456), time mixing.
        """
        heads, size = param.shape[1:]
        tokens, width = len(proj), heads * size
        r, k, v = (proj[:, i * width : (i + 1) * width].reshape(-1, heads, size) for i in range(3))
        lora_w, lora_a, lora_v, _ = lora.reshape(tokens, 4, heads, size).swapaxes(0, 1)
        w0, a0, v0, k_k, k_a = param
        w = np.exp(self.dtype.type(-np.exp(-0.5)) * sigmoid(w0 + lora_w))
        a = sigmoid(a0 + lora_a)
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(v0 + lora_v)
        kk = k * k_k
        kk = kk / np.maximum(np.sqrt((kk * kk).sum(-1, keepdims=True)), self.dtype.type(1e-12))
        return np.stack([r, w, k * (1 + (a - 1) * k_a), v, -kk, kk * a]), v_first

    def wkv7(self, s: Array, state: str, index: int) -> Array:
        """The recurrence, token by token, [T, H, N]."""
        r, w, k, v, a, b = s
        memory = self.state[state][index]
        out: Array = np.empty_like(r)
        for t in range(len(r)):
            sa = (memory @ a[t][:, :, None])[..., 0]
            memory *= w[t][:, None, :]
            memory += sa[:, :, None] * b[t][:, None, :]
            memory += v[t][:, :, None] * k[t][:, None, :]
            out[t] = (memory @ r[t][:, :, None])[..., 0]
        return out

    def rwkv7_readout(self, y: Array, s: Array, lora: Array, param: Array, eps: float) -> Array:
        """(group norm + bonus v) gate, [T, C]."""
        tokens, heads, size = y.shape
        r_k, weight, bias = param
        centred = y - y.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normed = centred / np.sqrt(variance + self.dtype.type(eps)) * weight + bias
        bonus = (s[0] * s[2] * r_k).sum(-1, keepdims=True)
        gate = lora.reshape(tokens, 4, heads, size)[:, 3]
        read: Array = (normed + bonus * s[3]) * gate
        return read.reshape(tokens, heads * size)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) without overflow."""
    half = x.dtype.type(0.5)
    return np.asarray(half * (1 + np.tanh(half * x)))


def activate(name: Activation, value: Array) -> Array:
    """A part's activation; the residual of "add" is the caller's business."""
    if name == "relu2":
        return np.square(np.maximum(value, 0))
    if name == "tanh":
        return np.asarray(np.tanh(value))
    return sigmoid(value) if name == "sigmoid" else value
