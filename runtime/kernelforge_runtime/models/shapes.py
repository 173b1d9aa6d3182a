"""A checkpoint's names and shapes without its values: for what is found out before loading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.weights import Checkpoint
from kernelforge_runtime.weights.lazy_rows import LazyRows


class Shapes(Checkpoint):
    """A checkpoint whose tensors are zeros, which take next to no memory; no file is held open.

    Attributes:
        handed: every tensor that was asked for, by name.
        asked: how often.
    """

    def __init__(self, real: Checkpoint) -> None:
        self.path, self.kind = real.path, real.kind
        self.metadata: Mapping[str, str] = real.metadata
        self._data, self._entries, self._packed = None, real._entries, real._packed
        self.handed: dict[str, NDArray[np.float32]] = {}
        self.asked = Counter[str]()

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Zeros of the tensor's shape, one element along every dimension but the first."""
        shape = self.shape(name)
        self.asked[name] += 1
        least = np.zeros((*shape[:1], *(1 for _ in shape[1:])), np.float32)
        self.handed[name] = np.broadcast_to(least, shape)
        return self.handed[name]

    def lazy_rows(self, name: str) -> LazyRows:
        """A table of zeros."""
        return LazyRows(self.tensor(name), F32)
