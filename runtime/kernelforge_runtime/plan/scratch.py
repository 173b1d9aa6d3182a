"""Memory that kernels need for themselves, such as partial sums: one buffer of a name for a plan.

Dispatches of a plan take turns with it: each writes it, so that a barrier stands between any two.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.plan.dispatch import Dispatch
from kernelforge_runtime.vk import Buffer, Device


def own_bytes(
    uses: Iterable[tuple[Signature, Mapping[str, int], Container[str]]],
) -> dict[str, int]:
    """Bytes of every buffer that kernels need for themselves, by name, so that each has enough.

    Args:
        uses: kernels with their dimensions and the names of what they are given.
    """
    sizes: dict[str, int] = {}
    for signature, dims, given in uses:
        if not signature.serves(dims):
            continue  # refused when it is bound
        for binding in signature.bindings:
            if binding.is_own and binding.name not in given:
                nbytes = max(16, binding.nbytes(dims))
                sizes[binding.name] = max(nbytes, sizes.get(binding.name, 0))
    return sizes


class Scratch:
    """The buffers of a plan that nobody outside of it knows; owns device memory.

    What is to be zero is zero at first, and every kernel leaves it so: a plan may be run again and
    again, as long as one run has ended before the next one begins.

    Args:
        device: owner of the memory.
        dispatches: of the plan; buffers are large enough for each of them.
        name: of the plan.
    """

    def __init__(self, device: Device, dispatches: Sequence[Dispatch], name: str) -> None:
        sizes = own_bytes((d.module.signature, d.dims, d.buffers) for d in dispatches)
        self._buffers: dict[str, Buffer] = {}
        try:
            for binding_name, nbytes in sizes.items():
                buffer = device.buffer(nbytes, f"{name} {binding_name}")
                self._buffers[binding_name] = buffer
                buffer.fill(0)
        except BaseException:
            self.close()
            raise

    def completed(self, dispatch: Dispatch) -> Dispatch:
        """The dispatch with the memory of its own that it was not given."""
        missing = {
            binding.name: self._buffers[binding.name]
            for binding in dispatch.module.signature.bindings
            if binding.is_own
            and binding.name not in dispatch.buffers
            and binding.name in self._buffers
        }
        return replace(dispatch, buffers={**dispatch.buffers, **missing}) if missing else dispatch

    def close(self) -> None:
        """Frees the memory; a second call does nothing."""
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
