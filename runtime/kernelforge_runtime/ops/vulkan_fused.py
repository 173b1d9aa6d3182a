"""Ops that one dispatch can do or several, on a Vulkan device: the bundles decide.

What no bundle has fused, and what was measured slower fused, is done by the separate ops.
"""

from __future__ import annotations

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.fusion import FUSED
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.vulkan_recurrence import Recurrences

FEW_TOKENS = 8
"""Beyond so many tokens of a sequence the separate kernels keep its state in registers."""


class Fusions(Recurrences):
    """Writes rwkv7_mix, or the three ops that it stands for."""

    def rwkv7_mix(
        self,
        proj: Temporary,
        lora: Temporary,
        params: tuple[DeviceVector, DeviceVector],
        v_first: Temporary | None,
        state: tuple[str, int],
        eps: float,
    ) -> tuple[Temporary, Temporary]:
        """([T, C], v_first): one dispatch for few tokens of a sequence, three else."""
        gates, readout = params
        _, heads, size = gates.shape
        width, sequences = proj.shape[-1], self._size.sequences
        problem = Problem(T=self._tokens, H=heads, N=size, P=width, B=sequences)
        fused = FUSED["rwkv7_mix"]
        few = self._size.single or self._tokens <= FEW_TOKENS
        if not few or not self._builder.fuses(
            ("rwkv7_mix", "f32", problem),
            fused.parts("f32", problem, (), self.activations.bits),
            otherwise=fused.unmeasured,
        ):
            s, kept = self.rwkv7_gates(proj, lora, gates, v_first)
            y = self.wkv7(s, *state)
            return self.rwkv7_readout(y, s, lora, readout, eps), kept
        kept = v_first if v_first is not None else Temporary((self._tokens, heads * size))
        out = Temporary((self._tokens, heads * size))
        name, index = state
        self._call(
            "rwkv7_mix",
            problem,
            {
                "proj": proj,
                "lora": lora,
                "gate_param": gates,
                "read_param": readout,
                "segment": self._segment,
                "v_first": kept,
                "state": self.state[name].entry(index),
                "out_y": out,
            },
            {"first": int(v_first is None), "eps": eps},
            label=f"{name}.{index}",
        )
        return out, kept
