"""One kernel call: a module, its dimensions, and the buffers bound by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import ADDRESS_BYTES
from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.vk.buffer import Buffer, BufferSlice

BufferLike = Buffer | BufferSlice


@dataclass(frozen=True)
class Dispatch:
    """A kernel call, checked against its signature before anything is recorded.

    Attributes:
        module: the kernel.
        dims: value of every dimension that the signature names.
        buffers: a buffer or slice for each binding, by name. What is the kernel's own (see
            `abi.signature.Access`) may be left out: a plan provides it.
        constants: push constants that are no dimensions.
        label: what it does in the model, for traces: `blocks.0.att.output`.
    """

    module: ShaderModule
    dims: Mapping[str, int]
    buffers: Mapping[str, BufferLike]
    constants: Mapping[str, int | float] = field(default_factory=dict)
    label: str = ""

    def bound(self) -> list[BufferSlice]:
        """The buffers in binding order, as slices.

        Raises:
            PlanError: a binding has no buffer, or one that is too small.
        """
        signature = self.module.signature
        if not signature.serves(self.dims):
            raise PlanError(
                f"{self.module.name} is {signature.limits}; asked for {dict(self.dims)}"
            )
        out = []
        for binding in signature.bindings:
            if binding.name not in self.buffers:
                raise PlanError(f"{self.module.name}: binding {binding.name} has no buffer")
            given = self.buffers[binding.name]
            piece = given if isinstance(given, BufferSlice) else given.slice(0, given.nbytes)
            if piece.buffer.handle is None:
                raise PlanError(f"{self.module.name}: the buffer of {binding.name} is closed")
            needed = binding.nbytes(self.dims)
            if piece.nbytes < needed:
                raise PlanError(
                    f"{self.module.name}: binding {binding.name} needs {needed} bytes for "
                    f"{dict(self.dims)}; the buffer has {piece.nbytes}"
                )
            out.append(piece)
        return out

    def counts(self, info: DeviceInfo) -> tuple[int, int, int]:
        """Workgroup counts.

        Raises:
            PlanError: more than the device allows.
        """
        counts = self.module.signature.grid.evaluate(self.dims)
        if any(c > most for c, most in zip(counts, info.max_workgroup_count, strict=True)):
            raise PlanError(
                f"{self.module.name}: {counts} workgroups for {dict(self.dims)}; "
                f"{info.name} allows {info.max_workgroup_count}"
            )
        return counts

    def push(self) -> bytes:
        """The push constant block: addresses first where the kernel takes them."""
        signature = self.module.signature
        head = b""
        if signature.addressing == "address":
            pieces = self.bound()
            head = b"".join(
                (p.buffer.address + p.offset).to_bytes(ADDRESS_BYTES, "little") for p in pieces
            )
        return head + signature.pack_constants({**self.dims, **self.constants})
