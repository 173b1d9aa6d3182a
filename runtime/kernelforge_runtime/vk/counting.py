"""A device that gives no memory and only counts what it is asked for.

Whatever allocates on a device can be run on this one first, so that what is computed beforehand is
what will be allocated, by construction.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.device import Device
from kernelforge_runtime.vk.memory import Placement
from kernelforge_runtime.vk.staging import STAGING_BYTES


class CountingDevice(Device):
    """Stands for a real device; nothing of it can run.

    Attributes:
        kind: what the next buffers are for, as the caller calls it.
        counted: bytes by (kind, heap).
    """

    def __init__(self, real: Device) -> None:
        self.info, self.physical = real.info, real.physical
        self._places = {visible: real.placement(visible) for visible in (False, True)}
        self.kind = ""
        self.counted: Counter[tuple[str, int]] = Counter()

    def buffer(self, nbytes: int, name: str = "", host_visible: bool = False) -> Buffer:
        """A buffer without memory."""
        self.count(nbytes, host_visible)
        return CountedBuffer(self, nbytes, name)

    def placement(self, host_visible: bool) -> Placement:
        """As of the real device."""
        return self._places[host_visible]

    def count(self, nbytes: int, host_visible: bool = False) -> None:
        """Counts a buffer of so many bytes."""
        place = self._places[host_visible]
        size = -(-nbytes // 16) * 16
        size = -(-size // place.alignment) * place.alignment
        self.counted[self.kind, place.heap] += size

    def count_staging(self) -> None:
        """Counts what copies go through, where the host does not see the device's memory."""
        if not self._places[False].mapped:
            self.count(STAGING_BYTES, host_visible=True)

    def close(self) -> None:
        """Nothing to release."""


class CountedBuffer(Buffer):
    """Takes what is written to it, and forgets it."""

    def __init__(self, device: CountingDevice, nbytes: int, name: str) -> None:
        self.device, self.name = device, name
        self.nbytes = -(-nbytes // 16) * 16
        self.mapped, self.address, self.handle = None, 0, None

    def view(self, dtype: DTypeLike) -> NDArray[Any]:
        """Zeros that go nowhere."""
        return np.zeros(self.nbytes, np.uint8).view(dtype)

    def upload(self, data: NDArray[Any], offset: int = 0) -> None:
        """Nothing."""

    def fill(self, word: int = 0) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing to release."""
