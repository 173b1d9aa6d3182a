"""The vocabulary on a Vulkan device: weights packed and uploaded once, ops written as calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.ops.builder import Operand, PlanBuilder, Temporary, TemporarySlice
from kernelforge_runtime.ops.device_weights import (
    ROUTE_ROWS,
    DeviceMatrix,
    DeviceState,
    DeviceVector,
    DeviceWeights,
    part_of,
)
from kernelforge_runtime.ops.vocabulary import Activation, Part
from kernelforge_runtime.vk import Buffer, BufferSlice, Device

PAGE_ROWS = 1024
"""Matrices beyond the binding limit are cut at multiples of this: offsets stay aligned."""
_CODES: dict[Activation, int] = {"none": 0, "relu2": 1, "tanh": 2, "sigmoid": 3, "add": 4}


@dataclass(frozen=True)
class StepBuffers:
    """What travels to and from the device at each step.

    Attributes:
        step: u32 [4]; the number of valid tokens first.
        token: u32 [T], token ids.
    """

    step: Buffer
    token: Buffer


class VulkanOps:
    """Packs weights at load; later writes a step's ops into a builder.

    Attributes:
        store: the weights.
        state: device memory of the recurrent state by name.
    """

    def __init__(self, device: Device, kernels: KernelSet, weights: DType) -> None:
        self.device, self.kernels, self.weights = device, kernels, weights
        self.store = DeviceWeights(device, weights)
        self.state: dict[str, DeviceState] = {}
        self._routes: dict[tuple[int, ...], BufferSlice] = {}
        self._builder = PlanBuilder(kernels)
        self._tokens = 1
        self._buffers: StepBuffers | None = None
        self._aside: dict[str, BufferSlice] = {}
        self._aside_memory: dict[str, BufferSlice] = {}

    def vector(self, values: NDArray[np.float32]) -> DeviceVector:
        """Uploads a small tensor in float32."""
        return self.store.vector(values)

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> DeviceMatrix:
        """Packs and uploads a stack of weights."""
        return self.store.matrix(parts, min_rows)

    def table(self, name: str, rows: NDArray[np.float32]) -> DeviceMatrix:
        """Uploads an embedding table."""
        return self.store.table(name, rows)

    def begin(self, tokens: int, buffers: StepBuffers) -> None:
        """Starts writing down a step of `tokens` tokens."""
        self._builder, self._tokens, self._buffers = PlanBuilder(self.kernels), tokens, buffers
        self._aside = {}

    def finish(self) -> PlanBuilder:
        """Ends the step: what was carried aside moves into the state. Returns the builder."""
        for name in self._aside:
            target = self.state[name].memory
            size = Problem(E=target.nbytes // 4)
            source = self._aside[name]
            self._builder.call("copy", "f32", size, {"in_x": source, "out_y": target}, label=name)
        return self._builder

    def embedding(self, table: DeviceMatrix) -> Temporary:
        """The rows of the step's tokens; a table beyond the binding limit goes in pages."""
        out = Temporary((self._tokens, table.k))
        row_bytes = self.weights.nbytes(table.k)
        for first, rows in self._pages("embedding", table.rows, row_bytes):
            self._builder.call(
                "embedding",
                self.weights.name,
                Problem(T=self._tokens, C=table.k, V=rows),
                {
                    "table": part_of(table.weight, first * row_bytes, rows * row_bytes),
                    "token": self._step.token,
                    "out_x": out,
                },
                {"first": first},
                label=table.label,
            )
        return out

    def _pages(self, family: str, rows: int, row_bytes: int) -> list[tuple[int, int]]:
        """(first row, rows) of the pieces of a matrix that a binding can hold."""
        limit = self.device.info.max_storage_buffer
        most = max(limit // row_bytes // PAGE_ROWS * PAGE_ROWS, PAGE_ROWS)
        if rows <= most:
            return [(0, rows)]
        return [(first, min(most, rows - first)) for first in range(0, rows, most)]

    @property
    def _step(self) -> StepBuffers:
        if self._buffers is None:
            raise PlanError("an op was called outside of a step: call begin first")
        return self._buffers

    def layer_norm(
        self,
        x: Temporary,
        weight: DeviceVector,
        bias: DeviceVector,
        eps: float = 1e-5,
        last: bool = False,
    ) -> Temporary:
        """Layer norm of every row, or of the last valid one."""
        tokens, width = (1 if last else self._tokens), x.shape[-1]
        out = Temporary((tokens, width))
        self._builder.call(
            "layer_norm",
            "f32",
            Problem(T=tokens, C=width, G=1),
            {
                "in_x": x,
                "weight": weight.memory,
                "bias": bias.memory,
                "step": self._step.step,
                "out_y": out,
            },
            {"eps": eps, "last": int(last)},
            label="layer_norm",
        )
        return out

    def token_shift(self, x: Temporary, state: str, index: int, mix: DeviceVector) -> Temporary:
        """[S, T, C]; one token updates the state in place, more write it aside until the end."""
        mixes, width = mix.shape
        kept = self.state[state]
        carry = following = kept.entry(index)
        if self._tokens > 1:
            aside = self._carried_aside(state)
            following = part_of(aside, index * kept.entry_bytes, kept.entry_bytes)
        out = Temporary((mixes, self._tokens, width))
        self._builder.call(
            "token_shift",
            "f32",
            Problem(T=self._tokens, C=width, S=mixes),
            {
                "in_x": x,
                "carry": carry,
                "mix_by": mix.memory,
                "step": self._step.step,
                "out_y": out,
                "next_carry": following,
            },
            label=f"{state}.{index}",
        )
        return out

    def norm_shift(
        self,
        x: Temporary,
        norm: tuple[DeviceVector, DeviceVector],
        state: str,
        index: int,
        mix: DeviceVector,
        eps: float = 1e-5,
    ) -> Temporary:
        """[S, T, C]: one dispatch for one token, two for more."""
        if self._tokens > 1:
            return self.token_shift(self.layer_norm(x, *norm, eps), state, index, mix)
        mixes, width = mix.shape
        carry = self.state[state].entry(index)
        out = Temporary((mixes, 1, width))
        self._builder.call(
            "norm_shift",
            "f32",
            Problem(C=width, S=mixes),
            {
                "in_x": x,
                "weight": norm[0].memory,
                "bias": norm[1].memory,
                "carry": carry,
                "mix_by": mix.memory,
                "out_y": out,
                "next_carry": carry,
            },
            {"eps": eps},
            label=f"{state}.{index}",
        )
        return out

    def _carried_aside(self, state: str) -> BufferSlice:
        """Memory as large as a state, which a step of many tokens may not yet overwrite."""
        if state not in self._aside_memory:
            self._aside_memory[state] = self.store.arena.take(
                self.state[state].memory.nbytes, zero=True
            )
        self._aside[state] = self._aside_memory[state]
        return self._aside[state]

    def linear(
        self, x: Temporary, matrix: DeviceMatrix, add_to: Temporary | None = None
    ) -> Temporary:
        """[T, rows]: gemv for one token, gemm for more."""
        tokens = x.shape[-2]
        out = add_to if add_to is not None else Temporary((tokens, matrix.rows))
        route = self._route(x, matrix, add_to is not None)
        slots = x.shape[0] if len(x.shape) == 3 else 1
        operands: dict[str, Operand] = {
            "weight": matrix.weight,
            "in_x": x,
            "route": route,
            "out_y": out,
        }
        if tokens > 1 and matrix.weight.nbytes <= self.device.info.max_storage_buffer:
            problem = Problem(M=matrix.rows, K=matrix.k, S=slots, T=tokens)
            self._builder.call("gemm", self.weights.name, problem, operands, label=matrix.label)
        else:
            for token in range(tokens):
                self._gemv(operands, matrix, slots, token, tokens)
        return out

    def _gemv(
        self,
        operands: dict[str, Operand],
        matrix: DeviceMatrix,
        slots: int,
        token: int,
        tokens: int,
    ) -> None:
        """One token's products, in as many pieces as the binding limit asks for."""
        row_bytes = self.weights.nbytes(matrix.k)
        x, out = operands["in_x"], operands["out_y"]
        assert isinstance(x, Temporary) and isinstance(out, Temporary)
        if tokens > 1:
            x_row = 4 * x.shape[-1]
            operands = {**operands, "in_x": TemporarySlice(x, token * x_row, x_row)}
        for first, rows in self._pages("gemv", matrix.rows, row_bytes):
            route = operands["route"]
            assert isinstance(route, BufferSlice)
            out_at = 4 * (token * matrix.rows + first)
            whole = rows == matrix.rows and tokens == 1
            piece = {
                **operands,
                "weight": part_of(matrix.weight, first * row_bytes, rows * row_bytes),
                "route": route if whole else part_of(route, first // 2, rows // 2),
                "out_y": out if whole else TemporarySlice(out, out_at, 4 * rows),
            }
            problem = Problem(M=rows, K=matrix.k, S=slots)
            self._builder.call("gemv", self.weights.name, problem, piece, label=matrix.label)

    def _route(self, x: Temporary, matrix: DeviceMatrix, add: bool) -> BufferSlice:
        """u32 [rows / 32, 4]: input offset, input row stride, activation, 0. Made once, shared."""
        tokens, columns = x.shape[-2:]
        route = np.zeros((matrix.rows // ROUTE_ROWS, 4), np.uint32)
        route[:, 1] = columns
        for row, count, part in matrix.parts:
            offset = part.slot * tokens * columns + part.column
            if part.column + matrix.k > columns and len(x.shape) == 2:
                raise PlanError(
                    f"{part.name}: column {part.column} + {matrix.k} is beyond {columns}"
                )
            code = _CODES["add" if add else part.activation]
            blocks = slice(row // ROUTE_ROWS, -(-(row + count) // ROUTE_ROWS))
            route[blocks, 0], route[blocks, 2] = offset, code
        key = tuple(int(v) for v in route.reshape(-1))
        if key not in self._routes:
            self._routes[key] = self.store.upload(route)
        return self._routes[key]

    def rwkv7_gates(
        self, proj: Temporary, lora: Temporary, param: DeviceVector, v_first: Temporary | None
    ) -> tuple[Temporary, Temporary]:
        """(inputs of wkv7, v_first)."""
        _, heads, size = param.shape
        out = Temporary((6, self._tokens, heads * size))
        kept = v_first if v_first is not None else Temporary((self._tokens, heads * size))
        self._builder.call(
            "rwkv7_gates",
            "f32",
            Problem(T=self._tokens, H=heads, N=size, P=proj.shape[-1]),
            {"proj": proj, "lora": lora, "param": param.memory, "v_first": kept, "out_s": out},
            {"first": int(v_first is None)},
            label="rwkv7_gates",
        )
        return out, kept

    def wkv7(self, s: Temporary, state: str, index: int) -> Temporary:
        """The recurrence; the state is updated in place."""
        kept = self.state[state]
        heads, size, _ = kept.shape
        out = Temporary((self._tokens, heads * size))
        self._builder.call(
            "wkv7",
            "f32",
            Problem(T=self._tokens, H=heads, N=size),
            {
                "in_s": s,
                "state": kept.entry(index),
                "step": self._step.step,
                "out_y": out,
            },
            label=f"{state}.{index}",
        )
        return out

    def rwkv7_readout(
        self, y: Temporary, s: Temporary, lora: Temporary, param: DeviceVector, eps: float
    ) -> Temporary:
        """Group norm, bonus and gate."""
        _, heads, size = param.shape
        out = Temporary((self._tokens, heads * size))
        self._builder.call(
            "rwkv7_readout",
            "f32",
            Problem(T=self._tokens, H=heads, N=size),
            {"in_y": y, "in_s": s, "lora": lora, "param": param.memory, "out_y": out},
            {"eps": eps},
            label="rwkv7_readout",
        )
        return out

    def argmax(self, logits: Temporary, vocab: int, out_token: Buffer) -> None:
        """The index of the largest of the first `vocab` logits."""
        operands: dict[str, Operand] = {"in_x": logits, "out_token": out_token}
        self._builder.call("argmax", "f32", Problem(V=vocab), operands, label="argmax")

    def close(self) -> None:
        """Releases the weights."""
        self.store.arena.close()
        self._routes.clear()
