"""GPU time: a pool of timestamp queries, read in nanoseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice


class TimestampPool:
    """`count` timestamp queries. Only for devices whose queue has valid timestamp bits."""

    def __init__(self, device: LogicalDevice, count: int) -> None:
        self.device, self.count = device, count
        ffi, lib = device.ffi, device.lib
        info = ffi.new(
            "VkQueryPoolCreateInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
                "queryType": lib.VK_QUERY_TYPE_TIMESTAMP,
                "queryCount": count,
            },
        )
        out = ffi.new("VkQueryPool*")
        check(lib.vkCreateQueryPool(device.handle, info, ffi.NULL, out), "creating timestamps")
        self.handle: Any = out[0]
        self._ticks = np.zeros(count, dtype=np.uint64)
        device.track("timestamp pool", self)

    def read_ns(self) -> NDArray[np.float64]:
        """Every timestamp in nanoseconds since the first one. The work must be done."""
        ffi, lib, device = self.device.ffi, self.device.lib, self.device
        size = self._ticks.nbytes
        result = lib.vkGetQueryPoolResults(
            device.handle,
            self.handle,
            0,
            self.count,
            size,
            ffi.from_buffer(self._ticks),
            8,
            0x1 | 0x2,
        )
        check(result, "reading timestamps")
        mask = np.uint64((1 << device.info.timestamp_bits) - 1)
        # A counter that wrapped once still counts right.
        elapsed = (self._ticks - self._ticks[0]) & mask
        return np.asarray(elapsed * device.info.timestamp_period_ns, np.float64)

    def close(self) -> None:
        """Releases the pool; a second call does nothing."""
        if self.handle is not None:
            self.device.lib.vkDestroyQueryPool(
                self.device.handle, self.handle, self.device.ffi.NULL
            )
            self.handle = None
            self.device.untrack("timestamp pool", self)
