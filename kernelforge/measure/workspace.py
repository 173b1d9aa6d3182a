"""The buffers of one problem on a device, with poison in the outputs and guards after the ends.

Every buffer is followed by guard words. After outputs they show writes past the end; after inputs
they are NaN, so a kernel that reads past the end and uses what it read gets a wrong result here
rather than a plausible one elsewhere. The kernel is handed the whole buffer, guards included:
bounds checks of the driver would otherwise hide the mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import MeasureError
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, Signature
from kernelforge_runtime.vk import Buffer, Device

POISON = 0x7FC0DEAD
"""A float32 NaN with a mark in it; its upper half is a NaN in float16 and bfloat16 too."""
GUARD_WORDS = 256


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
    ) -> dict[str, Buffer]:
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
            if binding.access != "write":
                buffer.upload(host_bytes(binding, problem, inputs))
            buffers[binding.name] = buffer
        return buffers

    def read_back(
        self, binding: Binding, problem: Problem
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """An output as words, and the guard words after it."""
        count = _words(binding.nbytes(problem))
        data = self._buffers[binding.name].download(np.uint32, (count + GUARD_WORDS,))
        return data[:count], data[count:]

    def _reserve(self, name: str, nbytes: int) -> Buffer:
        needed = 4 * (_words(nbytes) + GUARD_WORDS)
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
    data = np.ascontiguousarray(inputs[binding.name]).reshape(-1).view(np.uint8)
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
