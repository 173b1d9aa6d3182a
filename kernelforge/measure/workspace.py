"""The buffers of one problem on a device, with poison in the outputs and guards on both sides.

Guard words stand before and after every buffer. They show writes outside of it; and they are NaN,
so a kernel that reads outside and uses what it read gets a wrong result here rather than a
plausible one elsewhere. The kernel is handed the buffer from its start, the guard behind it
included: bounds checks of the driver would otherwise hide the mistake. What lies before the start
of a descriptor no kernel can reach where the driver checks bounds, as software devices do; through
an address it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import MeasureError
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, Signature
from kernelforge_runtime.layout import Layout, transform
from kernelforge_runtime.vk import Buffer, BufferSlice, Device

POISON = 0x7FC0DEAD
"""A float32 NaN with a mark in it; its upper half is a NaN in float16 and bfloat16 too."""
GUARD_WORDS = 256
"""On each side; as bytes a multiple of every alignment that Vulkan lets a device ask for."""
_GUARD_BYTES = 4 * GUARD_WORDS


@dataclass(frozen=True)
class Held:
    """What a buffer holds after a run, as words.

    Attributes:
        data: of the binding.
        before: the guard words in front of it.
        after: the guard words behind it.
    """

    data: NDArray[np.uint32]
    before: NDArray[np.uint32]
    after: NDArray[np.uint32]

    def touched(self) -> str:
        """Where a guard word was written, e.g. `end + word 0`; empty where none was."""
        if (after := np.flatnonzero(self.after != POISON)).size:
            return f"end + word {int(after[0])}"
        if (before := np.flatnonzero(self.before != POISON)).size:
            return f"start - word {GUARD_WORDS - int(before[-1])}"
        return ""


def _words(nbytes: int) -> int:
    return -(-nbytes // 4)


class Workspace:
    """Buffers by binding name, kept and grown between variants; owns device memory."""

    def __init__(self, device: Device, name: str = "") -> None:
        self._device, self._name = device, name
        self._buffers: dict[str, Buffer] = {}

    def close(self) -> None:
        """Frees every buffer."""
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()

    def __getitem__(self, name: str) -> Buffer:
        return self._buffers[name]

    def load(
        self, signature: Signature, problem: Problem, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, BufferSlice]:
        """Buffers for every binding: inputs uploaded, outputs and guards poisoned.

        Args:
            signature: of the variant that is about to run.
            problem: its dimensions.
            inputs: host arrays of every read and readwrite binding.

        Raises:
            MeasureError: an input is missing or has another size than its binding.
        """
        buffers = {}
        for binding in signature.bindings:
            buffer = self._reserve(binding.name, binding.nbytes(problem))
            buffer.fill(POISON)
            if binding.access == "zeroed":
                nothing = np.zeros(_words(binding.nbytes(problem)), np.uint32)
                buffer.upload(nothing, _GUARD_BYTES)
            elif binding.access not in ("write", "scratch"):
                buffer.upload(host_bytes(binding, problem, inputs), _GUARD_BYTES)
            rest = buffer.nbytes - _GUARD_BYTES
            buffers[binding.name] = buffer.slice(_GUARD_BYTES, rest)
        return buffers

    def read_back(self, binding: Binding, problem: Problem) -> Held:
        """What the buffer of a binding and the guards around it hold now."""
        count = _words(binding.nbytes(problem))
        words = self._buffers[binding.name].download(np.uint32, (count + 2 * GUARD_WORDS,))
        end = GUARD_WORDS + count
        return Held(words[GUARD_WORDS:end], words[:GUARD_WORDS], words[end:])

    def _reserve(self, name: str, nbytes: int) -> Buffer:
        needed = 4 * _words(nbytes) + 2 * _GUARD_BYTES
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < needed:
            if buffer is not None:
                buffer.close()
            buffer = self._device.buffer(needed, name=f"{self._name} {name}")
            self._buffers[name] = buffer
        return buffer


def host_bytes(
    binding: Binding, problem: Problem, inputs: Mapping[str, NDArray[Any]]
) -> NDArray[np.uint8]:
    """The bytes of a binding's input, padded with zeros to whole words.

    Raises:
        MeasureError: the input is missing or has another size than its binding.
    """
    if binding.name not in inputs:
        raise MeasureError(
            f"binding {binding.name} is read, but inputs() gives only {sorted(inputs)}; add it"
        )
    data = np.ascontiguousarray(inputs[binding.name])
    if binding.layout:  # families give row-major arrays
        plain = binding.memory(problem)
        per_word = plain.size // max(data.size, 1)
        target = plain.words(len(plain.shape) - 1, per_word)
        data = transform(data, Layout.row_major(target.shape), target)
    data = data.reshape(-1).view(np.uint8)
    nbytes = binding.nbytes(problem)
    if data.size != nbytes:
        raise MeasureError(
            f"binding {binding.name} takes {nbytes} bytes for {problem}, inputs() gives "
            f"{data.size}; make shape and array agree"
        )
    missing = 4 * _words(nbytes) - nbytes
    return np.concatenate([data, np.zeros(missing, np.uint8)]) if missing else data


def dimension_names(shape: tuple[str | int, ...]) -> set[str]:
    """The dimensions that a binding's shape mentions, in whatever expression."""
    return {c for part in shape if isinstance(part, str) for c in part if c.isupper()}
