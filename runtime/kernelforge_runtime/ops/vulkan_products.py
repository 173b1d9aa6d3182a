"""Matrix products on a Vulkan device: which kernel, in which pieces, by which routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS, route_code
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.ops.builder import Operand, Temporary, TemporarySlice
from kernelforge_runtime.ops.device_weights import DeviceMatrix, DeviceVector, part_of
from kernelforge_runtime.ops.vocabulary import Part
from kernelforge_runtime.ops.vulkan_step import StepWriter, Tensor
from kernelforge_runtime.quantize import K_MULTIPLE
from kernelforge_runtime.vk import BufferSlice

FEW_TOKENS = 8
"""Up to so many tokens gemv reads each weight once for all of them; gemm is for more."""


class Products(StepWriter):
    """Packs matrices at load; writes gemv for few tokens, gemm for more."""

    _routes: dict[bytes, BufferSlice]

    def matrix(self, parts: Sequence[Part], min_rows: int = 0) -> DeviceMatrix:
        """Packs and uploads a stack of weights."""
        return self.store.matrix(parts, min_rows)

    def linear(
        self,
        x: Temporary,
        matrix: DeviceMatrix,
        add_to: Temporary | None = None,
        bias: Tensor | None = None,
        gate: tuple[Tensor, int] | None = None,
        halve: bool = False,
    ) -> Temporary:
        """[T, rows]; see OpSet.

        Raises:
            PlanError: x is `add_to`, or something does not fit the matrix.
        """
        if add_to is x:
            raise PlanError(f"{matrix.label}: its input cannot be what it adds to")
        tokens = x.shape[-2]
        out = add_to if add_to is not None else Temporary((tokens, matrix.rows))
        aux, column = (bias, 0) if bias is not None else gate or (None, 0)
        if bias is not None and gate is not None:
            raise PlanError(f"{matrix.label}: a bias and a gate at once are not provided for")
        stride = aux.shape[-1] if aux is not None and len(aux.shape) > 1 else 0
        code = partial(
            route_code,
            bias=bias is not None,
            gate=gate is not None,
            add=add_to is not None,
            halve=halve,
            stride=stride,
        )
        operands: dict[str, Operand] = {
            "weight": matrix.weight,
            **({} if matrix.scale is None else {"scale": matrix.scale}),
            "in_x": x,
            "route": self._route(x, matrix, code, column if aux is not None else None),
            # A kernel that reads none is given something that is large enough.
            "aux": matrix.weight if aux is None else _memory(aux),
            "out_y": out,
        }
        slots = x.shape[0] if len(x.shape) == 3 else 1
        if matrix.weight.nbytes <= self.device.info.max_storage_buffer:
            family = "gemv" if tokens <= (FEW_TOKENS if self._gemv_counts_tokens else 1) else "gemm"
            problem = Problem(M=matrix.rows, K=matrix.k, S=slots, T=tokens, X=x.bits, Y=out.bits)
            self._product(family, problem, operands, matrix)
        else:
            for token in range(tokens):
                self._in_pages(operands, matrix, slots, token, tokens, stride)
        return out

    def _product(
        self,
        family: str,
        problem: Problem,
        operands: dict[str, Operand],
        matrix: DeviceMatrix,
    ) -> None:
        """One dispatch."""
        if family == "gemv" and not self._gemv_counts_tokens:
            problem = Problem(**{name: size for name, size in problem.items() if name != "T"})
        name, form = matrix.label, matrix.format.name
        self._call(family, problem, operands, None, name, form, matrix.layouts)

    @cached_property
    def _gemv_counts_tokens(self) -> bool:
        """Whether the bundles' gemv takes several tokens; that of older ones takes one."""
        entries = (e for bundle in self.kernels.bundles for e in bundle.entries)
        return any("T" in e.problem for e in entries if e.family == "gemv")

    def _in_pages(
        self,
        operands: dict[str, Operand],
        matrix: DeviceMatrix,
        slots: int,
        token: int,
        tokens: int,
        aux_stride: int,
    ) -> None:
        """One token's products with a matrix beyond the binding limit."""
        row_bytes = matrix.format.nbytes(matrix.k)
        x, out, aux = operands["in_x"], operands["out_y"], operands["aux"]
        assert isinstance(x, Temporary) and isinstance(out, Temporary)
        if tokens > 1:
            if slots > 1:
                raise PlanError(f"{matrix.label}: too large to be bound for several inputs at once")
            x_row = x.bits // 8 * x.shape[-1]
            operands = {**operands, "in_x": TemporarySlice(x, token * x_row, x_row)}
            if aux_stride:
                at = 4 * token * aux_stride
                operands["aux"] = _tail(aux, at)
        for first, rows in self._pages(matrix.rows, row_bytes):
            route = operands["route"]
            assert isinstance(route, BufferSlice)
            size = out.bits // 8
            out_at = size * (token * matrix.rows + first)
            piece = {
                **operands,
                "weight": part_of(matrix.weight, first * row_bytes, rows * row_bytes),
                "route": part_of(route, first // 2, rows // 2),
                "out_y": TemporarySlice(out, out_at, size * rows),
            }
            if aux is matrix.weight:  # never read, but bound: within the limit, as a page is
                piece["aux"] = piece["weight"]
            if matrix.scale is not None:
                words = matrix.k // K_MULTIPLE * 4
                piece["scale"] = part_of(matrix.scale, first * words, rows * words)
            problem = Problem(M=rows, K=matrix.k, S=slots, T=1, X=x.bits, Y=out.bits)
            self._product("gemv", problem, piece, matrix)

    def _route(
        self,
        x: Temporary,
        matrix: DeviceMatrix,
        code: Callable[[str], int],
        aux_column: int | None,
    ) -> BufferSlice:
        """u32 [rows / 32, 4]: input offset and row stride, code, aux offset. Made once, shared."""
        tokens, columns = x.shape[-2:]
        route = np.zeros((matrix.rows // ROUTE_ROWS, 4), np.uint32)
        route[:, 1] = columns
        if aux_column is not None:
            route[:, 3] = aux_column + ROUTE_ROWS * np.arange(len(route))
        for row, count, part in matrix.parts:
            if part.column + matrix.k > columns and len(x.shape) == 2:
                raise PlanError(
                    f"{part.name}: column {part.column} + {matrix.k} is beyond {columns}"
                )
            blocks = slice(row // ROUTE_ROWS, -(-(row + count) // ROUTE_ROWS))
            route[blocks, 0] = part.slot * tokens * columns + part.column
            route[blocks, 2] = code(part.activation)
        return self._uploaded(route)

    def _uploaded(self, route: NDArray[np.uint32]) -> BufferSlice:
        key = route.tobytes()
        if key not in self._routes:
            self._routes[key] = self.store.route(route)
        return self._routes[key]


def _memory(tensor: Tensor) -> Operand:
    return tensor.memory if isinstance(tensor, DeviceVector) else tensor


def _tail(operand: Operand, offset: int) -> Operand:
    """What of a tensor lies behind a byte."""
    if isinstance(operand, Temporary):
        return TemporarySlice(operand, offset, operand.nbytes - offset)
    assert isinstance(operand, BufferSlice)
    return part_of(operand, offset, operand.nbytes - offset)
