"""Device memory: a buffer with memory of its own, and a slice of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.errors import DeviceError, OutOfMemoryError
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.memory import Placement
from kernelforge_runtime.vk.pages import populate

_UNIFORM, _STORAGE = 0x10, 0x20
_TRANSFER = 0x1 | 0x2
_ADDRESS = 0x20000
_DEVICE_LOCAL, _HOST_VISIBLE, _HOST_COHERENT, _HOST_CACHED = 0x1, 0x2, 0x4, 0x8


class Buffer:
    """A storage buffer. Owned by who made it: call `close`, or close the device.

    Attributes:
        nbytes: size in bytes, rounded up to a multiple of 16.
        address: 64-bit device address; 0 where the device has no buffer addresses.
        mapped: the memory as uint8 where the host can see it, else None.
        granularity: allocations are multiples of so many bytes; what that adds is not counted.
    """

    granularity = 1

    def __init__(
        self, device: LogicalDevice, nbytes: int, name: str = "", host_visible: bool = False
    ) -> None:
        if nbytes <= 0:
            raise DeviceError(f"buffer {name!r} of {nbytes} bytes: a buffer has at least one byte")
        self.device, self.name = device, name
        self.nbytes = -(-nbytes // 16) * 16
        self.mapped: NDArray[np.uint8] | None = None
        self.address = 0
        ffi, lib = device.ffi, device.lib
        with_address = "buffer_device_address" in device.info.features
        info = ffi.new(
            "VkBufferCreateInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                "pNext": self._creation_chain(),
                "size": self.nbytes,
                "usage": self.usage(device),
            },
        )
        doing = f"allocating buffer {name!r} of {nbytes / 1e6:.1f} MB"
        out = ffi.new("VkBuffer*")
        self._reserve(lib.vkCreateBuffer(device.handle, info, ffi.NULL, out), doing)
        self.handle: Any = out[0]
        try:
            self.memory, flags = self._allocate(host_visible, with_address, doing)
        except DeviceError:
            lib.vkDestroyBuffer(device.handle, self.handle, ffi.NULL)
            raise
        device.track("buffer", self)
        try:
            self._bind(bool(flags & _HOST_VISIBLE and flags & _HOST_COHERENT), doing)
        except DeviceError:
            self.close()
            raise
        if with_address:
            where = ffi.new("VkBufferDeviceAddressInfo*")
            where.sType = lib.VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO
            where.buffer = self.handle
            self.address = int(lib.vkGetBufferDeviceAddress(device.handle, where))

    @staticmethod
    def usage(device: LogicalDevice) -> int:
        """VkBufferUsageFlags of every buffer."""
        features = device.info.features
        uniform = _UNIFORM if "uniform_windows" in features else 0
        address = _ADDRESS if "buffer_device_address" in features else 0
        return _STORAGE | _TRANSFER | uniform | address

    def _creation_chain(self) -> Any:
        """What a kind of buffer adds to its VkBufferCreateInfo: nothing."""
        return self.device.ffi.NULL

    def _allocation_chain(self, chain: Any) -> Any:
        """What a kind of buffer puts before the `chain` of its VkMemoryAllocateInfo."""
        return chain

    def _memory_place(self, needs: Any, host_visible: bool) -> tuple[int, int, int]:
        """(memory type, its property flags, bytes to allocate) for a VkMemoryRequirements."""
        index, flags = self.device.memory_type(int(needs.memoryTypeBits), host_visible)
        return index, flags, int(needs.size)

    def _allocated(self, size: int) -> int:
        """Bytes to ask for where so many are needed."""
        return -(-size // self.granularity) * self.granularity

    def _bind(self, mapped: bool, doing: str) -> None:
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        check(lib.vkBindBufferMemory(device.handle, self.handle, self.memory, 0), doing)
        if mapped:
            pointer = ffi.new("void**")
            check(lib.vkMapMemory(device.handle, self.memory, 0, self.nbytes, 0, pointer), doing)
            self.mapped = np.frombuffer(ffi.buffer(pointer[0], self.nbytes), dtype=np.uint8)

    def _allocate(self, host_visible: bool, with_address: bool, doing: str) -> tuple[Any, int]:
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        needs = ffi.new("VkMemoryRequirements*")
        lib.vkGetBufferMemoryRequirements(device.handle, self.handle, needs)
        index, flags, size = self._memory_place(needs, host_visible)
        extra = ffi.NULL
        if with_address:
            extra = ffi.new("VkMemoryAllocateFlagsInfo*")
            extra.sType = lib.VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO
            extra.flags = 0x2  # VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT
        info = ffi.new(
            "VkMemoryAllocateInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                "pNext": self._allocation_chain(extra),
                "allocationSize": self._allocated(size),
                "memoryTypeIndex": index,
            },
        )
        out = ffi.new("VkDeviceMemory*")
        heap = device.physical.memory_types[index][1]
        device.memory.take(heap, size, doing)
        try:
            self._reserve(lib.vkAllocateMemory(device.handle, info, ffi.NULL, out), doing)
        except DeviceError:
            device.memory.give(heap, size)
            raise
        self._taken = heap, size
        return out[0], flags

    def _reserve(self, result: int, doing: str) -> None:
        try:
            check(result, doing)
        except OutOfMemoryError as error:
            info = self.device.info
            raise OutOfMemoryError(
                f"{error}; {info.name} has {info.memory_bytes / 1e9:.1f} GB: "
                "use a smaller weight format"
            ) from None

    @staticmethod
    def placement(device: LogicalDevice, host_visible: bool) -> Placement:
        """Where a buffer would go: found with one that is given no memory."""
        ffi, lib = device.ffi, device.lib
        info = ffi.new("VkBufferCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO
        info.size, info.usage = 16, Buffer.usage(device)
        out, needs = ffi.new("VkBuffer*"), ffi.new("VkMemoryRequirements*")
        check(lib.vkCreateBuffer(device.handle, info, ffi.NULL, out), "looking for memory")
        lib.vkGetBufferMemoryRequirements(device.handle, out[0], needs)
        lib.vkDestroyBuffer(device.handle, out[0], ffi.NULL)
        index, flags = device.memory_type(int(needs.memoryTypeBits), host_visible)
        mapped = bool(flags & _HOST_VISIBLE and flags & _HOST_COHERENT)
        heap = device.physical.memory_types[index][1]
        return Placement(heap, mapped, max(16, int(needs.alignment)))

    def slice(self, offset: int, nbytes: int) -> BufferSlice:
        """A view of `nbytes` bytes from byte `offset`."""
        return BufferSlice(self, offset, nbytes)

    def view(self, dtype: DTypeLike) -> NDArray[Any]:
        """The mapped memory as an array; writes are seen by the next submit.

        Raises:
            DeviceError: the host cannot see this buffer.
        """
        if self.mapped is None:
            raise DeviceError(f"buffer {self.name!r} is not visible to the host; use download")
        return self.mapped.view(dtype)

    def expect(self, offset: int, nbytes: int) -> None:
        """Says that the host is about to write these bytes of the mapped memory.

        Where the device is a processor its memory is made of the host's pages.
        """
        if self.mapped is not None and self.device.info.device_type == "cpu":
            populate(self.mapped[offset : offset + nbytes])

    def upload(self, data: NDArray[Any], offset: int = 0) -> None:
        """Copies an array's bytes into the buffer from byte `offset`; returns when it is done."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._bounds(offset, raw.nbytes, "upload")
        if self.mapped is not None:
            self.mapped[offset : offset + raw.nbytes] = raw
            return
        self.device.staging.upload(self, raw, offset)

    def download(self, dtype: DTypeLike, shape: Any = -1, offset: int = 0) -> NDArray[Any]:
        """Copies elements out of the buffer, from byte `offset`.

        Args:
            dtype: NumPy element type.
            shape: shape of the result; -1 for all that is left, as one axis.
            offset: first byte.
        """
        kind = np.dtype(dtype)
        if isinstance(shape, int) and shape == -1:
            shape = ((self.nbytes - offset) // kind.itemsize,)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        self._bounds(offset, nbytes, "download")
        if self.mapped is not None:
            raw = self.mapped[offset : offset + nbytes].copy()
        else:
            raw = self.device.staging.download(self, nbytes, offset)
        return raw.view(kind).reshape(shape)

    def fill(self, word: int = 0) -> None:
        """Fills the whole buffer with a 32-bit word."""
        self._bounds(0, self.nbytes, "fill")
        if self.mapped is not None:
            self.mapped.view(np.uint32)[:] = word
            return
        self.device.staging.fill(self, word)

    def _bounds(self, offset: int, nbytes: int, verb: str) -> None:
        if self.handle is None:
            raise DeviceError(f"{verb} of buffer {self.name!r}: it is closed; make a new one")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise DeviceError(
                f"{verb} of {nbytes} bytes at {offset} in buffer {self.name!r}: "
                f"it has {self.nbytes}"
            )

    def close(self) -> None:
        """Releases the buffer; a second call does nothing."""
        if self.handle is None:
            return
        device, self.mapped = self.device, None
        device.lib.vkDestroyBuffer(device.handle, self.handle, device.ffi.NULL)
        device.lib.vkFreeMemory(device.handle, self.memory, device.ffi.NULL)
        device.memory.give(*self._taken)
        self.handle = None
        device.untrack("buffer", self)


@dataclass(frozen=True)
class BufferSlice:
    """Part of a buffer, as a dispatch binds it. Offset and size in bytes."""

    buffer: Buffer
    offset: int
    nbytes: int

    def __post_init__(self) -> None:
        end = self.offset + self.nbytes
        if self.offset % 16 or self.offset < 0 or self.nbytes < 1 or end > self.buffer.nbytes:
            raise DeviceError(
                f"slice of {self.nbytes} bytes at {self.offset} of buffer {self.buffer.name!r}: "
                f"it has {self.buffer.nbytes} bytes and offsets are multiples of 16"
            )

    def upload(self, data: NDArray[Any]) -> None:
        """Copies an array's bytes to the start of the slice."""
        if data.nbytes > self.nbytes:
            raise DeviceError(f"upload of {data.nbytes} bytes into a slice of {self.nbytes}")
        self.buffer.upload(data, self.offset)

    def download(self, dtype: DTypeLike, shape: Any) -> NDArray[Any]:
        """Copies elements from the start of the slice."""
        found = self.buffer.download(dtype, shape, self.offset)
        if found.nbytes > self.nbytes:
            raise DeviceError(f"download of {found.nbytes} bytes from a slice of {self.nbytes}")
        return found
