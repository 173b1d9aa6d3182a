"""Decode's norm, token shift and matrix product in one dispatch, where the bundles favour it."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS, route_code
from kernelforge_runtime.bundle.fusion import FUSED
from kernelforge_runtime.ops.builder import Operand, Temporary
from kernelforge_runtime.ops.device_weights import DeviceMatrix, DeviceVector
from kernelforge_runtime.ops.vulkan_products import FEW_TOKENS, Products
from kernelforge_runtime.vk import BufferSlice


class NormProducts(Products):
    """Writes norm_gemv, or the two ops that it stands for."""

    @abstractmethod
    def norm_shift(
        self,
        x: Temporary,
        norm: tuple[DeviceVector, DeviceVector],
        state: str,
        index: int,
        mix: DeviceVector,
        eps: float = 1e-5,
    ) -> Temporary:
        """[S, T, C]; see OpSet."""

    def norm_linear(
        self,
        x: Temporary,
        norm: tuple[DeviceVector, DeviceVector],
        state: str,
        index: int,
        mix: DeviceVector,
        matrix: DeviceMatrix,
        eps: float = 1e-5,
    ) -> Temporary:
        """[T, rows]: one dispatch for decode, and one for all carries at the end; else two."""
        out = Temporary((self._tokens, matrix.rows))
        if not self._takes_norm(x, mix, matrix, out.bits):
            return self.linear(self.norm_shift(x, norm, state, index, mix, eps), matrix)
        operands: dict[str, Operand | DeviceVector] = {
            "weight": matrix.weight,
            **({} if matrix.scale is None else {"scale": matrix.scale}),
            "in_x": x,
            "norm_scale": norm[0],
            "norm_bias": norm[1],
            "carry": self.state[state].entry(index),
            "mix_by": mix,
            "segment": self._segment,
            "route": self._mix_route(matrix),
            "aux": matrix.weight,  # never read, but bound
            "out_y": out,
            "next_carry": self._following(state, index),
        }
        form = matrix.format.name
        problem = self._norm_problem(x, mix, matrix, out.bits)
        constants = {"eps": eps}
        self._call("norm_gemv", problem, operands, constants, matrix.label, form, matrix.layouts)
        return out

    def _takes_norm(
        self, x: Temporary, mix: DeviceVector, matrix: DeviceMatrix, out_bits: int
    ) -> bool:
        """Whether the one dispatch is possible, and measured faster than the two."""
        whole = matrix.k == mix.shape[1] and not any(p.column for _, _, p in matrix.parts)
        few = self._size.single and self._tokens <= FEW_TOKENS and self._gemv_counts_tokens
        if not (whole and few) or matrix.weight.nbytes > self.device.info.max_storage_buffer:
            return False
        form, fused = matrix.format.name, FUSED["norm_gemv"]
        problem = self._norm_problem(x, mix, matrix, out_bits)
        return self._builder.fuses(
            ("norm_gemv", form, problem, matrix.layouts),
            fused.parts(form, problem, matrix.layouts, self.activations.bits),
            otherwise=fused.unmeasured,
        )

    def _norm_problem(
        self, x: Temporary, mix: DeviceVector, matrix: DeviceMatrix, out_bits: int
    ) -> Problem:
        mixes, width = mix.shape
        sizes = {"M": matrix.rows, "K": width, "S": mixes, "T": self._tokens}
        return Problem(**sizes, X=x.bits, Y=out_bits)

    def _mix_route(self, matrix: DeviceMatrix) -> BufferSlice:
        """u32 [rows / 32, 4]: where a block's mix starts, and its epilogue."""
        route = np.zeros((matrix.rows // ROUTE_ROWS, 4), np.uint32)
        for row, count, part in matrix.parts:
            blocks = slice(row // ROUTE_ROWS, -(-(row + count) // ROUTE_ROWS))
            route[blocks, 0] = part.slot * matrix.k
            route[blocks, 2] = route_code(part.activation)
        return self._uploaded(route)
