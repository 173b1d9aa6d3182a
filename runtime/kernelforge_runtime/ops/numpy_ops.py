"""The vocabulary in NumPy: what the kernels are held to, and the way to run without Vulkan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.abi.rosa import NO_MATCH
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.dtypes import F16, F32, QUANTIZED, DType, decode, encode
from kernelforge_runtime.ops import numpy_recurrence, numpy_rosa
from kernelforge_runtime.ops.given_rows import GIVEN, refuse_vectors
from kernelforge_runtime.ops.numpy_quantized import QuantizedRows, Workers
from kernelforge_runtime.ops.observation import EMBEDDING, EMBEDDING_PART, Mark
from kernelforge_runtime.ops.vocabulary import Activation, LazyRows, Part, Weight
from kernelforge_runtime.quantize import matrix_format
from kernelforge_runtime.weight_formats import WeightFormats

Array = NDArray[Any]
Kept = TypeVar("Kept", Array, QuantizedRows)
ALL_F32 = WeightFormats(F32)


@dataclass(frozen=True)
class StackedParts:
    """A matrix: its parts' weights with the first row of each, and the number of outputs."""

    parts: tuple[tuple[int, Array | QuantizedRows, Part], ...]
    rows: int


class NumpyOps:
    """Computes each op at once, for one sequence.

    Weights are rounded to `formats` and held in `dtype`, in which everything is computed:
    float32 to run, float64 as an oracle. Quantised matrices are held as they are, and their tables
    in float16.

    Attributes:
        state: arrays by name, updated in place.
        tokens: the step's token ids, [T].
        position: tokens that the sequence had consumed before.
        given: vectors [n, C], the rows of the tokens that are GIVEN; None where there are none.
        marks: what was observed in the step; None where nobody looks.
        activations: F16 rounds the residual stream and the inputs of products to float16.
        workers: threads that quantised products are shared among.
        weight_bytes: memory of the weights.
    """

    def __init__(
        self,
        dtype: DTypeLike = np.float32,
        formats: WeightFormats = ALL_F32,
        activations: DType = F32,
        threads: int | None = None,
    ) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.formats, self.activations = formats, activations
        self.workers = Workers(threads)
        self.weight_bytes = 0
        self.state: Mapping[str, Array] = {}
        self.tokens: Array = np.zeros(0, np.int64)
        self.position = 0
        self.given: Array | None = None
        self.marks: list[Mark] | None = None

    def block(self, index: int | None) -> None:
        """Nothing is counted here."""

    def observe(self, block: int, part: str, x: Array, scale: float = 1.0) -> None:
        """Notes it, where somebody looks."""
        if self.marks is not None:
            self.marks.append(Mark(block, part, x, scale))

    # Weights

    def vector(self, values: NDArray[np.float32]) -> Array:
        """Keeps a small tensor of weights."""
        return self._kept(values.astype(self.dtype))

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> StackedParts:
        """Keeps a stack of weights, rounded to the weight format."""
        rows, kept = 0, []
        asked = self.formats.stack(part.layer for part in parts)
        form = matrix_format(asked, max(p.weight.shape[1] for p in parts))
        for part in parts:
            weight: Array | QuantizedRows
            if form in QUANTIZED:
                weight = self._kept(QuantizedRows.of(part.name, part.weight, form))
            else:
                weight = self._kept(self._rounded(np.asarray(part.weight), form))
            kept.append((rows, weight, part.without_weight()))
            rows += -(-len(part.weight) // ROUTE_ROWS) * ROUTE_ROWS
        return StackedParts(tuple(kept), max(rows, min_rows))

    def table(self, name: str, rows: Weight) -> Array:
        """Keeps an embedding table."""
        rows = np.asarray(rows)
        form = self.formats.table
        if (self.formats.embedding or self.formats.usual) not in QUANTIZED:
            return self._kept(self._rounded(rows, form))
        return self._kept(encode(rows, form))

    def _kept(self, weight: Kept) -> Kept:
        self.weight_bytes += weight.nbytes
        return weight

    def host_tables(self, tables: Sequence[LazyRows]) -> Sequence[LazyRows]:
        """Nothing to do: they are on the host."""
        return tables

    def _rounded(self, weight: NDArray[np.float32], form: DType) -> Array:
        exact = weight if form == F32 else decode(encode(weight, form), form)
        return exact.astype(self.dtype)

    def _activation(self, x: Array) -> Array:
        """What is left of a value that the device keeps in the activations' type."""
        if self.activations != F16:
            return x
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(self.dtype)

    # Tokens

    def embedding(
        self, table: Array, tokens: Array | None = None, add_to: Array | None = None
    ) -> Array:
        """Plain indexing, [T, C]; a token without a match has a row of zeros."""
        if tokens is None:
            if self.given is None:
                rows = table[self.tokens].astype(self.dtype, copy=False)
            else:
                here = self.tokens == GIVEN
                rows = table[np.where(here, 0, self.tokens)].astype(self.dtype)
                rows[here] = self.given
        else:
            ids = tokens.reshape(-1)
            found = ids != NO_MATCH
            rows = table[np.where(found, ids, 0)].astype(self.dtype, copy=False)
            rows = np.where(found[:, None], rows, self.dtype.type(0))
        x = self._activation(rows if add_to is None else add_to + rows)
        if tokens is None:
            self.observe(EMBEDDING, EMBEDDING_PART, x)
        return x

    def host_rows(self, tables: Sequence[LazyRows]) -> Array:
        """[T, layers * columns]."""
        refuse_vectors(self.given is not None)
        return np.concatenate([t.rows(self.tokens) for t in tables], -1).astype(self.dtype)

    # Norms and mixes

    def layer_norm(
        self, x: Array, weight: Array, bias: Array, eps: float = 1e-5, last: bool = False
    ) -> Array:
        """(x - mean) / sqrt(var + eps) w + b, biased variance."""
        return self._activation(self._normed(x[-1:] if last else x, eps) * weight + bias)

    def _normed(self, x: Array, eps: float) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + self.dtype.type(eps)))

    def token_shift(self, x: Array, state: str, index: int, mix: Array) -> Array:
        """[S, T, C]; the carry becomes the last token."""
        carry = self.state[state][index]
        delta = np.concatenate([carry[None], x[:-1]]) - x
        carry[...] = x[-1]
        return self._activation(x + delta * mix[:, None, :])

    def norm_shift(
        self, x: Array, norm: tuple[Array, Array], state: str, index: int, mix: Array
    ) -> Array:
        """The one after the other, [S, T, C]."""
        return self.token_shift(self.layer_norm(x, *norm), state, index, mix)

    def lerp(self, shifted: Array, mix: Array) -> Array:
        """Mixes of each token's own, [S, T, C]."""
        _, x, before = shifted
        mixes = mix.reshape(len(x), -1, x.shape[1]).swapaxes(0, 1)
        return self._activation(x + (before - x) * mixes)

    def last_tokens(self, x: Array) -> Array:
        """[1, C]."""
        return x[-1:]

    # Products

    def linear(
        self,
        x: Array,
        matrix: StackedParts,
        add_to: Array | None = None,
        bias: Array | None = None,
        gate: tuple[Array, int] | None = None,
        halve: bool = False,
    ) -> Array:
        """[T, rows]; rows between parts are zero."""
        stacked = x if x.ndim == 3 else x[None]
        out = np.zeros((stacked.shape[1], matrix.rows), self.dtype)
        for row, weight, part in matrix.parts:
            rows, k = weight.shape
            columns = stacked[part.slot, :, part.column : part.column + k]
            if isinstance(weight, QuantizedRows):
                product = self.workers.product(columns, weight)
            else:
                product = columns @ weight.T
            if bias is not None:
                product = product + np.atleast_2d(bias)[:, row : row + rows]
            out[:, row : row + rows] = activate(part.activation, product)
        if gate is not None:
            tensor, column = gate
            out = out * tensor[:, column : column + out.shape[1]]
        if add_to is not None:
            out = out[:, : add_to.shape[1]] + add_to
        if halve:
            out = out * self.dtype.type(0.5)
        return self._activation(out) if add_to is not None else out

    def norm_linear(
        self,
        x: Array,
        norm: tuple[Array, Array],
        state: str,
        index: int,
        mix: Array,
        matrix: StackedParts,
    ) -> Array:
        """The one after the other, [T, rows]."""
        return self.linear(self.norm_shift(x, norm, state, index, mix), matrix)

    # Recurrences

    def wkv4(self, proj: Array, param: Array, state: str, index: int) -> Array:
        """[T, C]."""
        width = param.shape[1]
        r, k, v = (proj[:, i * width : (i + 1) * width] for i in range(3))
        read: Array = numpy_recurrence.wkv4(r, k, v, param, self.state[state][index])
        return read

    def wkv6(self, proj: Array, decay: Array, bonus: Array, state: str, index: int) -> Array:
        """[T, C]."""
        width = bonus.size
        r, k, v = (proj[:, i * width : (i + 1) * width].reshape(-1, *bonus.shape) for i in range(3))
        w = np.exp(-np.exp(decay.reshape(-1, *bonus.shape)))
        out = numpy_recurrence.wkv6(r, k, v, w, bonus, self.state[state][index])
        return out.reshape(len(proj), width)

    def head_norm(
        self, y: Array, param: Array, eps: float, gate: tuple[Array, int] | None = None
    ) -> Array:
        """[T, C]."""
        weight, bias = param
        normed = self._normed(y.reshape(-1, *weight.shape), eps) * weight + bias
        out: Array = normed.reshape(len(y), -1)
        if gate is None:
            return out
        tensor, column = gate
        return np.asarray(out * tensor[:, column : column + out.shape[1]])

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
        """[T, H, N]."""
        return numpy_recurrence.wkv7(s, self.state[state][index])

    def rwkv7_readout(self, y: Array, s: Array, lora: Array, param: Array, eps: float) -> Array:
        """(group norm + bonus v) gate, [T, C]."""
        tokens, heads, size = y.shape
        r_k, weight, bias = param
        bonus = (s[0] * s[2] * r_k).sum(-1, keepdims=True)
        gate = lora.reshape(tokens, 4, heads, size)[:, 3]
        read: Array = (self._normed(y, eps) * weight + bias + bonus * s[3]) * gate
        return read.reshape(tokens, heads * size)

    def rwkv7_mix(
        self,
        proj: Array,
        lora: Array,
        params: tuple[Array, Array],
        v_first: Array | None,
        state: tuple[str, int],
        eps: float,
    ) -> tuple[Array, Array]:
        """([T, C], v_first)."""
        s, v_first = self.rwkv7_gates(proj, lora, params[0], v_first)
        return self.rwkv7_readout(self.wkv7(s, *state), s, lora, params[1], eps), v_first

    def deep_embed(
        self, proj: Array, column: int, rows: Array, rows_column: int, param: Array
    ) -> Array:
        """[T, F]."""
        width = param.shape[1]
        short = proj[:, None, column : column + 32]
        embed = rows[:, rows_column : rows_column + 1024].reshape(-1, 32, 32)
        read: Array = proj[:, :width] * ((short @ embed)[:, 0] @ param[:32] + param[32])
        return read

    # ROSA

    def rosa(self, x: Array | None, bits: int, state: str, index: int) -> Array:
        """u32 [T, streams]."""
        refuse_vectors(x is None and self.given is not None)
        history = self.state[state][index]
        roles, streams, _ = history.shape
        given = (
            self.tokens.reshape(-1, roles, streams)
            if x is None
            else x.reshape(len(x), roles, streams, bits)
        )
        numpy_rosa.pack(history, given, bits, self.position)
        return numpy_rosa.match(history, bits, self.position, len(given))

    def rosa_values(
        self, symbols: Array, values: Array, bits: int, add_to: Array | None = None
    ) -> Array:
        """[T, C]."""
        read = numpy_rosa.read(symbols, values.reshape(3, -1, bits), bits)
        out = read.reshape(len(symbols), -1)
        return out if add_to is None else add_to + out


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x) without overflow."""
    half = x.dtype.type(0.5)
    return np.asarray(half * (1 + np.tanh(half * x)))


def activate(name: Activation, value: Array) -> Array:
    """A part's activation."""
    if name == "relu2":
        return np.square(np.maximum(value, 0))
    if name == "tanh":
        return np.asarray(np.tanh(value))
    if name == "silu":
        return value * sigmoid(value)
    return sigmoid(value) if name == "sigmoid" else value
