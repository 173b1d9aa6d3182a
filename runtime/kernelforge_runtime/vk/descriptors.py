"""Descriptor sets: which buffers a dispatch sees, made once per recorded plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.buffer import BufferSlice
from kernelforge_runtime.vk.loader import check

if TYPE_CHECKING:
    from kernelforge_runtime.vk.device import Device

_STORAGE_BUFFER = 7


class DescriptorPool:
    """Room for `sets` descriptor sets with `descriptors` storage buffers in all."""

    def __init__(self, device: Device, sets: int, descriptors: int) -> None:
        self.device = device
        ffi, lib = device.ffi, device.lib
        sizes = ffi.new("VkDescriptorPoolSize[1]")
        sizes[0].type, sizes[0].descriptorCount = _STORAGE_BUFFER, descriptors
        info = ffi.new("VkDescriptorPoolCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO
        info.maxSets, info.poolSizeCount, info.pPoolSizes = sets, 1, sizes
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
        info = ffi.new("VkDescriptorSetAllocateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO
        layouts = ffi.new("VkDescriptorSetLayout[1]", [layout])
        info.descriptorPool, info.descriptorSetCount, info.pSetLayouts = self.handle, 1, layouts
        out = ffi.new("VkDescriptorSet[1]")
        check(lib.vkAllocateDescriptorSets(device.handle, info, out), "binding buffers")
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
            writes[index].dstSet, writes[index].dstBinding = out[0], index
            writes[index].descriptorCount, writes[index].descriptorType = 1, _STORAGE_BUFFER
            writes[index].pBufferInfo = buffers + index
        lib.vkUpdateDescriptorSets(device.handle, len(pieces), writes, 0, ffi.NULL)
        return out[0]

    def close(self) -> None:
        """Releases the pool with all its sets; a second call does nothing."""
        if self.handle is not None:
            self.device.lib.vkDestroyDescriptorPool(
                self.device.handle, self.handle, self.device.ffi.NULL
            )
            self.handle = None
            self.device.untrack("descriptor pool", self)
