"""ROSA on a Vulkan device: pack the symbols, find the longest match, turn symbols into values."""

from __future__ import annotations

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceVector
from kernelforge_runtime.ops.given_rows import refuse_vectors
from kernelforge_runtime.ops.vulkan_step import StepWriter


class Rosa(StepWriter):
    """Writes ROSA's three kernels; the packed history is the state."""

    def rosa(self, x: Temporary | None, bits: int, state: str, index: int) -> Temporary:
        """u32 [T, streams]."""
        refuse_vectors(x is None and self._size.given)
        kept = self.state[state]
        roles, streams, words = kept.shape
        history, sequences = kept.entry(index), self._size.sequences
        sizes = {"T": self._tokens, "S": streams, "R": roles, "W": words, "B": sequences, "Q": bits}
        label = f"{state}.{index}"
        self._call(
            "rosa_pack",
            Problem(**sizes),
            {
                "in_x": self._step.token if x is None else x,
                "segment": self._segment,
                "history": history,
            },
            label=label,
        )
        out = Temporary((self._tokens, streams))
        self._call(
            "rosa",
            Problem(**sizes),
            {
                "history": history,
                "segment": self._segment,
                "owner": self._step.owner,
                "out_symbol": out,
            },
            label=label,
        )
        return out

    def rosa_values(
        self, symbols: Temporary, values: DeviceVector, bits: int, add_to: Temporary | None = None
    ) -> Temporary:
        """[T, C]."""
        tokens, streams = symbols.shape
        out = add_to if add_to is not None else Temporary((tokens, streams * bits))
        self._call(
            "rosa_read",
            Problem(T=tokens, S=streams, Q=bits),
            {"symbols": symbols, "values": values, "out_x": out},
            {"add": int(add_to is not None)},
        )
        return out
