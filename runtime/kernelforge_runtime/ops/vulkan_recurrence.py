"""The recurrences on a Vulkan device, and what stands right before and after them."""

from __future__ import annotations

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.vulkan_step import StepWriter, Tensor


class Recurrences(StepWriter):
    """Writes wkv4, wkv6 and wkv7 and their gates and norms; states are updated in place."""

    def wkv4(self, proj: Temporary, param: DeviceVector, state: str, index: int) -> Temporary:
        """[T, C]."""
        width = param.shape[1]
        out = Temporary((self._tokens, width))
        self._call(
            "wkv4",
            Problem(T=self._tokens, C=width, B=self._size.sequences, P=proj.shape[-1]),
            {
                "in_p": proj,
                "param": param,
                "state": self.state[state].entry(index),
                "segment": self._segment,
                "out_y": out,
            },
            label=f"{state}.{index}",
        )
        return out

    def wkv6(
        self, proj: Temporary, decay: Tensor, bonus: DeviceVector, state: str, index: int
    ) -> Temporary:
        """[T, C]."""
        heads, size = bonus.shape
        out = Temporary((self._tokens, heads * size))
        self._call(
            "wkv6",
            Problem(
                T=self._tokens,
                H=heads,
                N=size,
                B=self._size.sequences,
                P=proj.shape[-1],
                D=1 if isinstance(decay, DeviceVector) else self._tokens,
            ),
            {
                "in_p": proj,
                "decay": decay,
                "bonus": bonus,
                "state": self.state[state].entry(index),
                "segment": self._segment,
                "out_y": out,
            },
            label=f"{state}.{index}",
        )
        return out

    def head_norm(
        self,
        y: Temporary,
        param: DeviceVector,
        eps: float,
        gate: tuple[Temporary, int] | None = None,
    ) -> Temporary:
        """[T, C]."""
        _, heads, size = param.shape
        tensor, column = gate or (y, 0)
        out = Temporary((self._tokens, heads * size))
        self._call(
            "head_norm",
            Problem(T=self._tokens, H=heads, N=size, P=tensor.shape[-1]),
            {"in_y": y, "in_p": tensor, "param": param, "out_y": out},
            {"eps": eps, "gated": int(gate is not None), "column": column},
        )
        return out

    def rwkv7_gates(
        self, proj: Temporary, lora: Temporary, param: DeviceVector, v_first: Temporary | None
    ) -> tuple[Temporary, Temporary]:
        """(inputs of wkv7, v_first)."""
        _, heads, size = param.shape
        out = Temporary((6, self._tokens, heads * size))
        kept = v_first if v_first is not None else Temporary((self._tokens, heads * size))
        self._call(
            "rwkv7_gates",
            Problem(T=self._tokens, H=heads, N=size, P=proj.shape[-1]),
            {"proj": proj, "lora": lora, "param": param, "v_first": kept, "out_s": out},
            {"first": int(v_first is None)},
        )
        return out, kept

    def wkv7(self, s: Temporary, state: str, index: int) -> Temporary:
        """[T, C]."""
        kept = self.state[state]
        heads, size, _ = kept.shape
        out = Temporary((self._tokens, heads * size))
        self._call(
            "wkv7",
            Problem(T=self._tokens, H=heads, N=size, B=self._size.sequences),
            {"in_s": s, "state": kept.entry(index), "segment": self._segment, "out_y": out},
            label=f"{state}.{index}",
        )
        return out

    def rwkv7_readout(
        self, y: Temporary, s: Temporary, lora: Temporary, param: DeviceVector, eps: float
    ) -> Temporary:
        """Group norm, bonus and gate."""
        _, heads, size = param.shape
        out = Temporary((self._tokens, heads * size))
        self._call(
            "rwkv7_readout",
            Problem(T=self._tokens, H=heads, N=size),
            {"in_y": y, "in_s": s, "lora": lora, "param": param, "out_y": out},
            {"eps": eps},
        )
        return out

    def deep_embed(
        self, proj: Temporary, column: int, rows: Tensor, rows_column: int, param: DeviceVector
    ) -> Temporary:
        """[T, F]."""
        width = param.shape[1]
        out = Temporary((self._tokens, width))
        self._call(
            "deep_embed",
            Problem(T=self._tokens, F=width, P=proj.shape[-1], R=rows.shape[-1]),
            {"in_p": proj, "rows": rows, "param": param, "out_k": out},
            {"column": column, "rows_column": rows_column},
        )
        return out
