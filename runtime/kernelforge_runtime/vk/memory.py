"""How much of a device's memory is taken, how much may be, and how much there still is."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelforge_runtime.errors import DeviceError, OutOfMemoryError

if TYPE_CHECKING:
    from kernelforge_runtime.vk.physical import PhysicalDevice

MEMORY_VARIABLE = "KERNELFORGE_MEMORY"
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{ending}": base**power
    for power, letter in enumerate("kmgt", 1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


@dataclass(frozen=True)
class Placement:
    """Where buffers of a kind go.

    Attributes:
        heap: index of the memory heap.
        mapped: whether the host sees them.
        alignment: their sizes in memory are multiples of so many bytes.
    """

    heap: int
    mapped: bool
    alignment: int


class MemoryAccount:
    """What the buffers of one device take.

    Attributes:
        limit: bytes that they may take together; None for whatever the device has.
        peak: most bytes that were taken at once.
    """

    def __init__(self, physical: PhysicalDevice, limit: int | None) -> None:
        self._physical, self.limit, self.peak = physical, limit, 0
        self._taken: Counter[int] = Counter()

    @property
    def used(self) -> int:
        """Bytes taken now, of all heaps."""
        return self._taken.total()

    def used_of(self, heap: int) -> int:
        """Bytes taken now of a heap."""
        return self._taken[heap]

    @property
    def left(self) -> int | None:
        """Bytes below the limit; None without one."""
        return None if self.limit is None else max(0, self.limit - self.used)

    def free(self, heap: int) -> int:
        """Bytes of a heap that can still be had, by the driver's budget where it tells one.

        A driver without budgets knows of this device's own use alone.
        """
        budget = self._physical.memory_budget()
        if budget is not None:
            most, used = budget[heap]
            return max(0, most - used)
        return max(0, self._physical.heaps[heap] - self._taken[heap])

    def take(self, heap: int, nbytes: int, doing: str) -> None:
        """Counts an allocation that is about to be made.

        Raises:
            OutOfMemoryError: it is beyond the limit.
        """
        if self.limit is not None and self.used + nbytes > self.limit:
            raise OutOfMemoryError(
                f"{doing}: {self.used:,} bytes are taken and the limit is {self.limit:,} "
                f"(--memory, {MEMORY_VARIABLE})"
            )
        self._taken[heap] += nbytes
        self.peak = max(self.peak, self.used)

    def give(self, heap: int, nbytes: int) -> None:
        """Counts a release."""
        self._taken[heap] -= nbytes


def parse_bytes(text: str) -> int:
    """`2GiB`, `1.5 GB`, `500M` (which is MiB) or a plain number of bytes, from 1 up.

    Raises:
        DeviceError: it is no such size.
    """
    found = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    nbytes = int(float(found[1]) * unit) if found and unit else 0
    if nbytes < 1:
        raise DeviceError(
            f"memory limit {text[:40]!r}: expected a size like 2GiB, 1500MB or a number of bytes"
        )
    return nbytes


def limit_of(given: int | str | None) -> int | None:
    """The limit that was given, or what the environment variable says; None for no limit.

    Raises:
        DeviceError: it is no size.
    """
    if given is None:
        given = os.environ.get(MEMORY_VARIABLE) or None
    return given if given is None else parse_bytes(str(given))
