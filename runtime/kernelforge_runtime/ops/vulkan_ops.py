"""The vocabulary on a Vulkan device: weights packed and uploaded once, ops written as calls."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.sampling import CHOICE_WORDS
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.ops.builder import Temporary
from kernelforge_runtime.ops.device_weights import DeviceMatrix, DeviceVector, part_of
from kernelforge_runtime.ops.given_rows import refuse_vectors
from kernelforge_runtime.ops.host_rows import HostRows
from kernelforge_runtime.ops.observation import EMBEDDING, EMBEDDING_PART
from kernelforge_runtime.ops.vocabulary import LazyRows, Weight
from kernelforge_runtime.ops.vulkan_fused import Fusions
from kernelforge_runtime.ops.vulkan_norm_products import NormProducts
from kernelforge_runtime.ops.vulkan_rosa import Rosa
from kernelforge_runtime.ops.vulkan_step import Tensor
from kernelforge_runtime.vk import BufferSlice, Device
from kernelforge_runtime.weight_formats import WeightFormats


class VulkanOps(NormProducts, Fusions, Rosa):
    """Tokens, norms and mixes; products, recurrences and ROSA stand in files of their own.

    Attributes:
        host_tables_kept: tables whose rows the host brings to every step.
    """

    def __init__(
        self, device: Device, kernels: KernelSet, formats: WeightFormats, activations: DType = F32
    ) -> None:
        super().__init__(device, kernels, formats, activations)
        self._routes = {}
        self.host_tables_kept: list[HostRows] = []

    # Tokens

    def table(self, name: str, rows: Weight) -> DeviceMatrix:
        """Uploads an embedding table."""
        return self.store.table(name, rows)

    def host_tables(self, tables: Sequence[LazyRows]) -> HostRows:
        """Keeps tables on the host; see HostRows."""
        self.host_tables_kept.append(HostRows(self.device, tables))
        return self.host_tables_kept[-1]

    def embedding(
        self,
        table: DeviceMatrix,
        tokens: Temporary | None = None,
        add_to: Temporary | None = None,
    ) -> Tensor:
        """[T, C]; a table beyond the binding limit goes in pages. Vectors are there already."""
        out: Tensor
        if tokens is None and self._size.given:
            assert self.given is not None
            out = self.given.tensor(self._tokens)
        else:
            out = add_to if add_to is not None else self._stream(self._tokens, table.k)
        row_bytes = table.format.nbytes(table.k)
        for first, rows in self._pages(table.rows, row_bytes):
            self._call(
                "embedding",
                Problem(T=self._tokens, C=table.k, V=rows, X=out.bits),
                {
                    "table": part_of(table.weight, first * row_bytes, rows * row_bytes),
                    "token": self._step.token if tokens is None else tokens,
                    "out_x": out,
                },
                {"first": first, "add": int(add_to is not None)},
                table.label,
                table.format.name,
            )
        if tokens is None:
            self.observe(EMBEDDING, EMBEDDING_PART, out)
        return out

    def host_rows(self, tables: HostRows) -> DeviceVector:
        """[T, layers * columns], written by the host before the step."""
        refuse_vectors(self._size.given)
        return tables.tensor(self._tokens)

    def last_tokens(self, x: Temporary) -> Temporary:
        """[B, C]."""
        tokens, width = x.shape
        sequences = self._size.sequences
        out = Temporary((sequences, width))
        self._call(
            "last_token",
            Problem(T=tokens, C=width, B=sequences),
            {"in_x": x, "segment": self._segment, "out_y": out},
        )
        return out

    # Norms and mixes

    def layer_norm(
        self,
        x: Tensor,
        weight: DeviceVector,
        bias: DeviceVector,
        eps: float = 1e-5,
        last: bool = False,
    ) -> Temporary:
        """Every row, or the last one of every sequence."""
        rows, width = (self._size.sequences if last else self._tokens), x.shape[-1]
        out = self._stream(rows, width)
        self._call(
            "layer_norm",
            Problem(T=rows, C=width, X=out.bits),
            {"in_x": x, "weight": weight, "bias": bias, "segment": self._segment, "out_y": out},
            {"eps": eps, "last": int(last)},
        )
        return out

    def token_shift(self, x: Temporary, state: str, index: int, mix: DeviceVector) -> Temporary:
        """[S, T, C]."""
        mixes, width = mix.shape
        carry = self.state[state].entry(index)
        out = self._stream(mixes, self._tokens, width)
        sizes = {"T": self._tokens, "C": width, "S": mixes, "B": self._size.sequences}
        self._call(
            "token_shift",
            Problem(**sizes, X=out.bits),
            {
                "in_x": x,
                "carry": carry,
                "mix_by": mix,
                "owner": self._step.owner,
                "segment": self._segment,
                "out_y": out,
                "next_carry": carry if self._size.single else self._following(state, index),
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
        """[S, T, C]: one dispatch in decode, two else."""
        if not self._size.single:
            return self.token_shift(self.layer_norm(x, *norm, eps), state, index, mix)
        mixes, width = mix.shape
        carry = self.state[state].entry(index)
        out = self._stream(mixes, self._tokens, width)
        self._call(
            "norm_shift",
            Problem(T=self._tokens, C=width, S=mixes, X=out.bits),
            {
                "in_x": x,
                "weight": norm[0],
                "bias": norm[1],
                "carry": carry,
                "mix_by": mix,
                "segment": self._segment,
                "out_y": out,
                "next_carry": carry,
            },
            {"eps": eps},
            label=f"{state}.{index}",
        )
        return out

    def lerp(self, shifted: Temporary, mix: Temporary) -> Temporary:
        """[S, T, C]."""
        _, tokens, width = shifted.shape
        mixes = mix.shape[-1] // width
        out = self._stream(mixes, tokens, width)
        self._call(
            "lerp",
            Problem(T=tokens, C=width, S=mixes, X=out.bits),
            {"shifted": shifted, "mix_by": mix, "out_y": out},
        )
        return out

    # The end of a step

    def argmax(self, logits: Temporary, vocab: int, out_token: BufferSlice) -> None:
        """The index of the largest of the first `vocab` logits of one sequence."""
        self._call("argmax", Problem(V=vocab), {"in_x": logits, "out_token": out_token})

    def sample(
        self,
        logits: Temporary,
        vocab: int,
        choice: BufferSlice,
        penalty: BufferSlice,
        out_token: BufferSlice,
    ) -> None:
        """A token of every sequence, as `choice` and `penalty` tell (see abi/sampling)."""
        rows, width = logits.shape
        room = penalty.nbytes // (choice.nbytes // (4 * CHOICE_WORDS)) // 8
        self._call(
            "sample",
            Problem(V=vocab, M=width, B=rows, H=room),
            {"logits": logits, "choice": choice, "penalty": penalty, "out_token": out_token},
        )

    def close(self) -> None:
        """Releases weights, state and the hosts' rows."""
        super().close()
        self._routes.clear()
        for tables in self.host_tables_kept:
            tables.close()
        self.host_tables_kept.clear()
