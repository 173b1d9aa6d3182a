"""Large buffers of a device that is a processor: in memory that the host asked for itself.

Such a device's own memory is a file without a name: to have the system provide 384 MiB of that
takes 0.19 s of the processor's time, of anonymous memory 0.12 s (llvmpipe, Linux 6.18, 2026-11-22,
medians of seven processes in turns). What a process closes and takes again costs more than there,
where it was never given back. Where the driver does not take such memory, buffers are as elsewhere.

Large pages are not asked for: on a virtual machine whose host takes free ones back each costs more
than the small ones in its place, six times as much on that machine.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any, Final

import numpy as np

from kernelforge_runtime.errors import OutOfMemoryError
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.physical import EXTERNAL_MEMORY_HOST
from kernelforge_runtime.vk.procedure import procedure

LEAST_BYTES: Final = 4 << 20
"""Smaller buffers gain nothing."""
_HOST_ALLOCATION: Final = 0x80  # VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT
_IMPORTABLE: Final = 0x4


class HostBuffer(Buffer):
    """A buffer in anonymous memory of this process; else as any buffer."""

    granularity = mmap.PAGESIZE

    def _creation_chain(self) -> Any:
        ffi, lib = self.device.ffi, self.device.lib
        self._said = ffi.new("VkExternalMemoryBufferCreateInfo*")
        self._said.sType = lib.VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO
        self._said.handleTypes = _HOST_ALLOCATION
        return self._said

    def _memory_place(self, needs: Any, host_visible: bool) -> tuple[int, int, int]:
        size = int(needs.size)
        try:
            pages = mmap.mmap(-1, self._allocated(size), flags=_PRIVATE)
        except (OSError, OverflowError, ValueError):
            raise OutOfMemoryError(
                f"allocating buffer {self.name!r} of {size / 1e6:.1f} MB: the host has not so much "
                "memory; use a smaller weight format"
            ) from None
        self._pages: mmap.mmap | None = pages
        self._start = np.frombuffer(pages, np.uint8, 1).__array_interface__["data"][0]
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        found = ffi.new("VkMemoryHostPointerPropertiesEXT*")
        found.sType = lib.VK_STRUCTURE_TYPE_MEMORY_HOST_POINTER_PROPERTIES_EXT
        ask = procedure(device, "vkGetMemoryHostPointerPropertiesEXT")
        pointer = ffi.cast("void*", self._start)
        self._reserve(ask(device.handle, _HOST_ALLOCATION, pointer, found), "importing memory")
        allowed = int(needs.memoryTypeBits) & int(found.memoryTypeBits)
        index, flags = device.memory_type(allowed, host_visible)
        return index, flags, size

    def _allocation_chain(self, chain: Any) -> Any:
        ffi, lib = self.device.ffi, self.device.lib
        self._said = ffi.new("VkImportMemoryHostPointerInfoEXT*")
        self._said.sType = lib.VK_STRUCTURE_TYPE_IMPORT_MEMORY_HOST_POINTER_INFO_EXT
        self._said.handleType, self._said.pNext = _HOST_ALLOCATION, chain
        self._said.pHostPointer = ffi.cast("void*", self._start)
        return self._said

    def close(self) -> None:
        """Releases the buffer, then its memory; a second call does nothing."""
        super().close()
        self._pages = None


_PRIVATE: Final = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


def takes_host_memory(device: LogicalDevice) -> bool:
    """Whether large buffers of this device are better made of the host's own memory."""
    if device.info.device_type != "cpu" or not sys.platform.startswith("linux"):
        return False
    if EXTERNAL_MEMORY_HOST not in device.physical.extensions:
        return False
    ffi, lib = device.ffi, device.lib
    asked = ffi.new("VkPhysicalDeviceExternalBufferInfo*")
    asked.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_BUFFER_INFO
    asked.usage, asked.handleType = Buffer.usage(device), _HOST_ALLOCATION
    found = ffi.new("VkExternalBufferProperties*")
    found.sType = lib.VK_STRUCTURE_TYPE_EXTERNAL_BUFFER_PROPERTIES
    lib.vkGetPhysicalDeviceExternalBufferProperties(device.physical.handle, asked, found)
    limits = ffi.new("VkPhysicalDeviceExternalMemoryHostPropertiesEXT*")
    limits.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_MEMORY_HOST_PROPERTIES_EXT
    properties = ffi.new("VkPhysicalDeviceProperties2*")
    properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
    properties.pNext = limits
    lib.vkGetPhysicalDeviceProperties2(device.physical.handle, properties)
    features = int(found.externalMemoryProperties.externalMemoryFeatures)
    aligned = mmap.PAGESIZE % max(1, int(limits.minImportedHostPointerAlignment)) == 0
    return bool(features & _IMPORTABLE) and aligned
