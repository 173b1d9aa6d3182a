"""The buffers that variants are timed on: weights in many copies, so that they come from memory.

A model reads every weight once per token, and all weights together do not fit any cache. A tuner
that runs one matrix again and again measures the cache instead. So bindings that hold weights are
copied until a round through all copies is larger than a last-level cache, and each repetition of
the dispatch gets the next copy. Activations were written just before in a model: they stay hot.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import KernelFamily
from kernelforge.measure.workspace import dimension_names, host_bytes
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, Signature
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.vk import Buffer, Device

COLD_BYTES = 160 << 20
"""One round through the copies is at least this long, where copies are made at all."""
LEAST_BYTES = 64 << 10
"""A smaller binding is not copied: a round would need thousands of dispatches."""
MOST_COPIES = 256
_SLACK = 256


class Rotation:
    """Timing buffers of one problem; made when first asked for, owned until `close`.

    Args:
        device: owner of the memory.
        family: gives the inputs.
        precision: of the weights.
        problem: the dimensions that are timed.
        seed: of the inputs.
    """

    def __init__(
        self, device: Device, family: KernelFamily, precision: DType, problem: Problem, seed: int
    ) -> None:
        self._device, self._family = device, family
        self._precision, self._problem, self._seed = precision, problem, seed
        self._inputs: dict[str, NDArray[Any]] | None = None
        self._buffers: dict[tuple[str, int], list[Buffer]] = {}  # by binding and bytes

    def close(self) -> None:
        """Frees the device memory."""
        for copies in self._buffers.values():
            for buffer in copies:
                buffer.close()
        self._buffers.clear()
        self._inputs = None

    def copies(self, signature: Signature) -> int:
        """How many dispatches one round through all copies takes."""
        rotating = sum(b.nbytes(self._problem) for b in signature.bindings if self._is_weight(b))
        if not rotating:
            return 1
        return max(1, min(math.ceil(COLD_BYTES / rotating), MOST_COPIES))

    def cold(self, signature: Signature) -> bool:
        """True where a round through the weights is larger than a last-level cache."""
        rotating = sum(b.nbytes(self._problem) for b in signature.bindings if self._is_weight(b))
        return rotating * self.copies(signature) >= COLD_BYTES // 2

    def buffers(self, signature: Signature, turn: int) -> dict[str, Buffer]:
        """Buffers of every binding for repetition number `turn`."""
        count = self.copies(signature)
        chosen = {}
        for binding in signature.bindings:
            if binding.is_own:  # the plan provides it
                continue
            wanted = count if self._is_weight(binding) else 1
            nbytes = binding.nbytes(self._problem)  # a layout may need more than another one
            held = self._buffers.setdefault((binding.name, nbytes), [])
            while len(held) <= turn % wanted:
                held.append(self._filled(binding, nbytes))
            chosen[binding.name] = held[turn % wanted]
        return chosen

    def _filled(self, binding: Binding, nbytes: int) -> Buffer:
        buffer = self._device.buffer(nbytes + _SLACK, name=f"timing {binding.name}")
        if binding.access == "write":
            buffer.fill(0)
            return buffer
        if self._inputs is None:
            rng = np.random.default_rng(self._seed)
            self._inputs = self._family.inputs(self._problem, self._precision, rng)
        buffer.upload(host_bytes(binding, self._problem, self._inputs))
        return buffer

    def _is_weight(self, binding: Binding) -> bool:
        """Weights are read, do not depend on batch or tokens, and are worth copying."""
        if binding.access != "read" or {"B", "T"} & dimension_names(binding.shape):
            return False
        return binding.nbytes(self._problem) >= LEAST_BYTES
