"""Descriptor sets: which buffers a dispatch sees, made once per recorded plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kernelforge_runtime.abi.windows import MOST_WINDOWS, WINDOW_STEP, count_windows, windows
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.buffer import BufferSlice
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice

_UNIFORM_BUFFER, _STORAGE_BUFFER = 6, 7


class DescriptorPool:
    """Room for `sets` descriptor sets, with so many storage buffers and windows in all."""

    def __init__(
        self, device: LogicalDevice, sets: int, descriptors: int, windows: int = 0
    ) -> None:
        self.device = device
        ffi, lib = device.ffi, device.lib
        kinds = [(_STORAGE_BUFFER, descriptors), (_UNIFORM_BUFFER, windows)]
        kinds = [(kind, count) for kind, count in kinds if count]
        sizes = ffi.new("VkDescriptorPoolSize[]", len(kinds))
        for size, (kind, count) in zip(sizes, kinds, strict=True):
            size.type, size.descriptorCount = kind, count
        info = ffi.new("VkDescriptorPoolCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO
        info.maxSets, info.poolSizeCount, info.pPoolSizes = sets, len(kinds), sizes
        out = ffi.new("VkDescriptorPool*")
        check(
            lib.vkCreateDescriptorPool(device.handle, info, ffi.NULL, out),
            "making a descriptor pool",
        )
        self.handle: Any = out[0]
        device.track("descriptor pool", self)

    def bind(self, layout: Any, pieces: Sequence[BufferSlice]) -> Any:
        """A descriptor set of `layout` with these buffers at binding 0, 1, 2, ...

        Raises:
            DeviceError: a slice is larger than the device lets a binding be, or not aligned.
        """
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        out = self._allocate(layout)
        limit, alignment = device.info.max_storage_buffer, device.info.min_storage_alignment
        buffers = ffi.new("VkDescriptorBufferInfo[]", len(pieces))
        writes = ffi.new("VkWriteDescriptorSet[]", len(pieces))
        for index, piece in enumerate(pieces):
            if piece.nbytes > limit or piece.offset % alignment:
                raise DeviceError(
                    f"binding {piece.nbytes} bytes at {piece.offset} of {piece.buffer.name!r}: "
                    f"{device.info.name} binds at most {limit} bytes, aligned to {alignment}"
                )
            buffers[index].buffer = piece.buffer.handle
            buffers[index].offset, buffers[index].range = piece.offset, piece.nbytes
            writes[index].sType = lib.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET
            writes[index].dstSet, writes[index].dstBinding = out, index
            writes[index].descriptorCount, writes[index].descriptorType = 1, _STORAGE_BUFFER
            writes[index].pBufferInfo = buffers + index
        lib.vkUpdateDescriptorSets(device.handle, len(pieces), writes, 0, ffi.NULL)
        return out

    def bind_windows(self, layout: Any, piece: BufferSlice) -> Any:
        """A descriptor set of `layout` with the windows of this buffer, see `abi.windows`.

        Raises:
            DeviceError: it has too many, or is not aligned.
        """
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        count, alignment = count_windows(piece.nbytes), device.physical.uniform_alignment
        if count > MOST_WINDOWS or piece.offset % alignment:
            raise DeviceError(
                f"binding {piece.nbytes} bytes at {piece.offset} of {piece.buffer.name!r}: "
                f"windows show at most {MOST_WINDOWS * WINDOW_STEP} bytes, aligned to {alignment}"
            )
        out = self._allocate(layout, count)
        buffers = ffi.new("VkDescriptorBufferInfo[]", count)
        # A large matrix has thousands: they are filled in as the three 64-bit words that they are.
        words = np.frombuffer(ffi.buffer(buffers), np.uint64).reshape(count, 3)
        starts, sizes = windows(piece.nbytes)
        words[:, 0] = int(ffi.cast("uintptr_t", piece.buffer.handle))
        words[:, 1], words[:, 2] = starts + np.uint64(piece.offset), sizes
        write = ffi.new("VkWriteDescriptorSet*")
        write.sType = lib.VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET
        write.dstSet, write.descriptorCount = out, count
        write.descriptorType, write.pBufferInfo = _UNIFORM_BUFFER, buffers
        lib.vkUpdateDescriptorSets(device.handle, 1, write, 0, ffi.NULL)
        return out

    def _allocate(self, layout: Any, count: int = 0) -> Any:
        """A set of `layout`, of `count` descriptors where its layout leaves that open."""
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        info = ffi.new("VkDescriptorSetAllocateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO
        layouts = ffi.new("VkDescriptorSetLayout[1]", [layout])
        info.descriptorPool, info.descriptorSetCount, info.pSetLayouts = self.handle, 1, layouts
        varying = ffi.new("VkDescriptorSetVariableDescriptorCountAllocateInfo*")
        counts = ffi.new("uint32_t[1]", [count])
        if count:
            varying.sType = (
                lib.VK_STRUCTURE_TYPE_DESCRIPTOR_SET_VARIABLE_DESCRIPTOR_COUNT_ALLOCATE_INFO
            )
            varying.descriptorSetCount, varying.pDescriptorCounts = 1, counts
            info.pNext = varying
        out = ffi.new("VkDescriptorSet[1]")
        check(lib.vkAllocateDescriptorSets(device.handle, info, out), "binding buffers")
        return out[0]

    def close(self) -> None:
        """Releases the pool with all its sets; a second call does nothing."""
        if self.handle is not None:
            self.device.lib.vkDestroyDescriptorPool(
                self.device.handle, self.handle, self.device.ffi.NULL
            )
            self.handle = None
            self.device.untrack("descriptor pool", self)
