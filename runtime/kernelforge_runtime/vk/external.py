"""Buffers that two logical devices share: exported as a file descriptor, imported from one.

Both devices must be of the same physical device and driver; they may belong to two instances, or
to two processes (send the descriptor over a Unix socket, the rest as plain numbers).

Who owns a descriptor: `SharedBuffer.export` makes one that belongs to the `ExportedBuffer`, which
closes it. `import_buffer` gives the driver a copy, so that one export may be imported many times,
and leaves the given one alone, whether it succeeds or not. The memory lives until the last buffer
on it is closed, whichever that is.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.commands import CommandBuffer
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.physical import EXTERNAL_MEMORY_FD
from kernelforge_runtime.vk.procedure import procedure

_OPAQUE_FD = 0x1  # VK_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD_BIT
_EXPORTABLE, _IMPORTABLE, _DEDICATED = 0x2, 0x4, 0x1
_USAGE = 0x20 | 0x1 | 0x2
_EXTERNAL_FAMILY = 0xFFFFFFFE  # VK_QUEUE_FAMILY_EXTERNAL
_HAND_OVER_TIMEOUT_S = 60.0


@dataclass
class ExportedBuffer:
    """A buffer's memory as another device can open it. Owns the descriptor: close it.

    Attributes:
        fd: the file descriptor; -1 once closed or taken.
        nbytes: of the buffer.
        allocation_bytes: of the memory behind it.
        memory_type: index of its memory type.
        identity: device and driver UUID in hex; an importer must have the same.
    """

    fd: int
    nbytes: int
    allocation_bytes: int
    memory_type: int
    identity: str

    def take(self) -> int:
        """The descriptor, which belongs to the caller from here on."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Closes the descriptor; a second call does nothing. Buffers imported from it stay."""
        if self.fd >= 0:
            os.close(self.take())

    def __enter__(self) -> ExportedBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class SharedBuffer(Buffer):
    """A buffer whose memory other devices may open; made by `shared_buffer` or `import_buffer`.

    What one device wrote the other sees once the first has handed over and the second has taken
    over; who holds it may use it as any buffer.
    """

    def __init__(
        self,
        device: LogicalDevice,
        nbytes: int,
        name: str = "",
        host_visible: bool = False,
        source: ExportedBuffer | None = None,
    ) -> None:
        self._source = source
        self._dedicated = _require(device, _IMPORTABLE if source is not None else _EXPORTABLE)
        self._place = (0, 0)
        super().__init__(device, nbytes, name, host_visible)

    def _creation_chain(self) -> Any:
        ffi, lib = self.device.ffi, self.device.lib
        self._kept = ffi.new("VkExternalMemoryBufferCreateInfo*")
        self._kept.sType = lib.VK_STRUCTURE_TYPE_EXTERNAL_MEMORY_BUFFER_CREATE_INFO
        self._kept.handleTypes = _OPAQUE_FD
        return self._kept

    def _memory_place(self, needs: Any, host_visible: bool) -> tuple[int, int, int]:
        if self._source is None:
            index, flags, size = super()._memory_place(needs, host_visible)
        else:
            # An import must say what its export was allocated with, to the byte.
            index, size = self._source.memory_type, self._source.allocation_bytes
            types = self.device.physical.memory_types
            if not 0 <= index < len(types) or not int(needs.memoryTypeBits) >> index & 1:
                raise DeviceError(
                    f"importing buffer {self.name!r}: {self.device.info.name} cannot bind memory "
                    f"of type {index}: import it on the device that it was exported from"
                )
            if size < int(needs.size):
                raise DeviceError(
                    f"importing buffer {self.name!r}: it needs {int(needs.size)} bytes, the "
                    f"export has {size}"
                )
            flags = types[index][0]
        self._place = index, size
        return index, flags, size

    def _allocation_chain(self, chain: Any) -> Any:
        ffi, lib = self.device.ffi, self.device.lib
        if self._dedicated:
            own = ffi.new("VkMemoryDedicatedAllocateInfo*")
            own.sType = lib.VK_STRUCTURE_TYPE_MEMORY_DEDICATED_ALLOCATE_INFO
            own.buffer, own.pNext = self.handle, chain
            self._own = chain = own
        if self._source is None:
            made = ffi.new("VkExportMemoryAllocateInfo*")
            made.sType = lib.VK_STRUCTURE_TYPE_EXPORT_MEMORY_ALLOCATE_INFO
            made.handleTypes, made.pNext = _OPAQUE_FD, chain
        else:
            made = ffi.new("VkImportMemoryFdInfoKHR*")
            made.sType = lib.VK_STRUCTURE_TYPE_IMPORT_MEMORY_FD_INFO_KHR
            made.handleType, made.pNext = _OPAQUE_FD, chain
            self._fd = made.fd = os.dup(self._source.fd)
        self._kept = made
        return made

    def _allocate(self, host_visible: bool, with_address: bool, doing: str) -> tuple[Any, int]:
        self._fd = -1
        try:
            found = super()._allocate(host_visible, with_address, doing)
        except BaseException:
            if self._fd >= 0:  # the driver takes a descriptor only with the memory
                os.close(self._fd)
            raise
        return found

    def export(self) -> ExportedBuffer:
        """A descriptor of this buffer's memory.

        Raises:
            DeviceError: the buffer is closed, or is itself an import that cannot be exported.
        """
        self._bounds(0, self.nbytes, "export")
        if self._source is not None:
            raise DeviceError(
                f"export of buffer {self.name!r}: it was imported; export the buffer it came from"
            )
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        asked = ffi.new("VkMemoryGetFdInfoKHR*")
        asked.sType = lib.VK_STRUCTURE_TYPE_MEMORY_GET_FD_INFO_KHR
        asked.memory, asked.handleType = self.memory, _OPAQUE_FD
        fd = ffi.new("int*")
        get = procedure(device, "vkGetMemoryFdKHR")
        check(get(device.handle, asked, fd), f"exporting buffer {self.name!r}")
        index, size = self._place
        return ExportedBuffer(int(fd[0]), self.nbytes, size, index, identity(device))

    def hand_over(self) -> None:
        """Makes what this device wrote ready for the other one; returns when it is."""
        self._transfer(self.device.physical.queue_family, _EXTERNAL_FAMILY, "handing over")

    def take_over(self) -> None:
        """Makes what the other device handed over visible to this one."""
        self._transfer(_EXTERNAL_FAMILY, self.device.physical.queue_family, "taking over")

    def _transfer(self, giver: int, taker: int, doing: str) -> None:
        self._bounds(0, self.nbytes, doing)
        ffi, lib = self.device.ffi, self.device.lib
        barrier = ffi.new("VkBufferMemoryBarrier*")
        barrier.sType = lib.VK_STRUCTURE_TYPE_BUFFER_MEMORY_BARRIER
        barrier.srcAccessMask = barrier.dstAccessMask = 0x8000 | 0x10000  # memory read, write
        barrier.srcQueueFamilyIndex, barrier.dstQueueFamilyIndex = giver, taker
        barrier.buffer, barrier.size = self.handle, self.nbytes
        with CommandBuffer(self.device, f"{doing} buffer {self.name!r}") as commands:
            commands.begin()
            everything = 0x10000  # VK_PIPELINE_STAGE_ALL_COMMANDS_BIT
            lib.vkCmdPipelineBarrier(
                commands.handle, everything, everything, 0, 0, ffi.NULL, 1, barrier, 0, ffi.NULL
            )
            commands.end()
            commands.submit()
            commands.wait(_HAND_OVER_TIMEOUT_S)


def shared_buffer(
    device: LogicalDevice, nbytes: int, name: str = "", host_visible: bool = False
) -> SharedBuffer:
    """A new buffer that can be exported.

    Raises:
        DeviceError: the driver cannot export memory as a file descriptor; one line says why.
        OutOfMemoryError: it does not fit.
    """
    return SharedBuffer(device, nbytes, name, host_visible)


def import_buffer(device: LogicalDevice, exported: ExportedBuffer, name: str = "") -> SharedBuffer:
    """A buffer on the memory that another device exported; `exported` stays as it is.

    Raises:
        DeviceError: the driver cannot import a file descriptor, the memory is another device's,
            or the descriptor is closed or none of memory; one line says what.
    """
    found = identity(device)
    if exported.identity != found:
        raise DeviceError(
            f"importing buffer {name!r}: it was exported by another device or driver "
            f"({exported.identity}); {device.info.name} is {found}"
        )
    if exported.allocation_bytes < exported.nbytes or exported.nbytes < 1:
        raise DeviceError(
            f"importing buffer {name!r}: {exported.nbytes} bytes in memory of "
            f"{exported.allocation_bytes}: this is no export of ours"
        )
    try:
        status = os.fstat(exported.fd)
    except (OSError, OverflowError, TypeError):
        raise DeviceError(
            f"importing buffer {name!r}: descriptor {exported.fd} is not open; export it again"
        ) from None
    # Drivers of processors map the file as it is: what is shorter would kill the process.
    if stat.S_ISREG(status.st_mode) and status.st_size < exported.allocation_bytes:
        raise DeviceError(
            f"importing buffer {name!r}: descriptor {exported.fd} is a file of {status.st_size} "
            f"bytes, the export has {exported.allocation_bytes}: it is no descriptor of memory"
        )
    return SharedBuffer(device, exported.nbytes, name, source=exported)


def cannot_share(device: LogicalDevice) -> str | None:
    """Why this device's buffers cannot be shared; None where they can."""
    try:
        _require(device, _EXPORTABLE | _IMPORTABLE)
    except DeviceError as error:
        return str(error)
    return None


def identity(device: LogicalDevice) -> str:
    """Device and driver UUID: memory may be shared where both are the same."""
    ffi, lib = device.ffi, device.lib
    found = ffi.new("VkPhysicalDeviceIDProperties*")
    found.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES
    properties = ffi.new("VkPhysicalDeviceProperties2*")
    properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
    properties.pNext = found
    lib.vkGetPhysicalDeviceProperties2(device.physical.handle, properties)
    return f"{bytes(found.deviceUUID).hex()}/{bytes(found.driverUUID).hex()}"


def _require(device: LogicalDevice, wanted: int) -> bool:
    """Whether shared buffers need memory of their own; raises where they are not possible."""
    name = device.info.name
    if EXTERNAL_MEMORY_FD not in device.physical.extensions:
        raise DeviceError(
            f"{name} cannot share buffers by file descriptor: its driver lacks "
            f"{EXTERNAL_MEMORY_FD}; copy through the host instead"
        )
    ffi, lib = device.ffi, device.lib
    asked = ffi.new("VkPhysicalDeviceExternalBufferInfo*")
    asked.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_EXTERNAL_BUFFER_INFO
    asked.usage, asked.handleType = _USAGE, _OPAQUE_FD
    if "buffer_device_address" in device.info.features:
        asked.usage |= 0x20000
    found = ffi.new("VkExternalBufferProperties*")
    found.sType = lib.VK_STRUCTURE_TYPE_EXTERNAL_BUFFER_PROPERTIES
    lib.vkGetPhysicalDeviceExternalBufferProperties(device.physical.handle, asked, found)
    features = int(found.externalMemoryProperties.externalMemoryFeatures)
    if features & wanted != wanted:
        lacking = "export" if wanted & ~features & _EXPORTABLE else "import"
        raise DeviceError(
            f"{name} cannot {lacking} buffers by file descriptor: its driver has "
            f"{EXTERNAL_MEMORY_FD}, but not for storage buffers; copy through the host instead"
        )
    return bool(features & _DEDICATED)
