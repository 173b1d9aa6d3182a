"""Pipelines: a checked SPIR-V module made ready to run on one device."""

from __future__ import annotations

from typing import Any

from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.spirv import check_module
from kernelforge_runtime.abi.windows import MOST_WINDOWS
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.pipeline_cache import PipelineCache

_UNIFORM_BUFFER, _STORAGE_BUFFER = 6, 7
_VARIABLE_COUNT = 0x8
_COMPUTE_STAGE = 0x20
_FULL_SUBGROUPS = 0x2


class Pipeline:
    """A compute pipeline with its layouts.

    Attributes:
        module: the kernel.
        layout: VkPipelineLayout.
        set_layout: VkDescriptorSetLayout of its buffers, or of the windows of one of them; None
            where the kernel takes addresses only.
    """

    def __init__(
        self, device: LogicalDevice, module: ShaderModule, cache: PipelineCache, room: int = 0
    ) -> None:
        self._cache = cache
        self.device, self.module, self._room = device, module, room or MOST_WINDOWS
        check_module(module, device.info)
        self._check_features()
        self.handle: Any = None
        self.layout: Any = None
        self.set_layout: Any = None
        device.track("pipeline", self)
        try:
            self._make_layouts()
            self._make_pipeline()
        except DeviceError:
            self.close()
            raise

    def _check_features(self) -> None:
        info, needs = self.device.info, set(self.module.signature.features)
        if self.module.signature.addressing == "address":
            needs.add("buffer_device_address")
        missing = sorted(needs - info.features)
        if missing:
            raise DeviceError(
                f"{self.module.name} needs {', '.join(missing)}: {info.name} has none of it"
            )
        size = self.module.signature.subgroup
        if size and size != info.subgroup_size and not self._sized(size):
            raise DeviceError(
                f"{self.module.name} needs subgroups of {size}; {info.name} has "
                f"{info.subgroup_min} to {info.subgroup_max}"
            )

    def _sized(self, size: int) -> bool:
        info = self.device.info
        controlled = "subgroup_size_control" in info.features
        return controlled and info.subgroup_min <= size <= info.subgroup_max

    def _make_layouts(self) -> None:
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        signature, doing = self.module.signature, f"making the layout of {self.module.name}"
        count = 0
        if signature.windowed:
            self.set_layout = self._set_layout(_UNIFORM_BUFFER, 1, self._room, doing)
            count = len(signature.windowed)
        elif signature.addressing == "descriptor" and signature.bindings:
            bound = len(signature.bindings)
            self.set_layout, count = self._set_layout(_STORAGE_BUFFER, bound, 1, doing), 1
        sets = ffi.new("VkDescriptorSetLayout[]", count * [self.set_layout])
        push = ffi.new("VkPushConstantRange*")
        push.stageFlags, push.size = _COMPUTE_STAGE, signature.push_constant_bytes
        info = ffi.new("VkPipelineLayoutCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO
        info.setLayoutCount, info.pSetLayouts = count, sets
        info.pushConstantRangeCount = 1 if push.size else 0
        info.pPushConstantRanges = push
        out = ffi.new("VkPipelineLayout*")
        check(lib.vkCreatePipelineLayout(device.handle, info, ffi.NULL, out), doing)
        self.layout = out[0]

    def _set_layout(self, kind: int, bound: int, most: int, doing: str) -> Any:
        """The layout of a set: `bound` bindings of up to `most` buffers each."""
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        bindings = ffi.new("VkDescriptorSetLayoutBinding[]", bound)
        for index in range(bound):
            bindings[index].binding = index
            bindings[index].descriptorType, bindings[index].descriptorCount = kind, most
            bindings[index].stageFlags = _COMPUTE_STAGE
        info = ffi.new("VkDescriptorSetLayoutCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO
        info.bindingCount, info.pBindings = bound, bindings
        varying = ffi.new("VkDescriptorSetLayoutBindingFlagsCreateInfo*")
        flags = ffi.new("uint32_t[]", bound * [_VARIABLE_COUNT])
        if most > 1:  # each set has as many as its buffer needs
            varying.sType = lib.VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_BINDING_FLAGS_CREATE_INFO
            varying.bindingCount, varying.pBindingFlags = bound, flags
            info.pNext = varying
        out = ffi.new("VkDescriptorSetLayout*")
        check(lib.vkCreateDescriptorSetLayout(device.handle, info, ffi.NULL, out), doing)
        return out[0]

    def _make_pipeline(self) -> None:
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        module, doing = self.module, f"compiling {self.module.name} on {self.device.info.name}"
        shader = ffi.new("VkShaderModuleCreateInfo*")
        shader.sType = lib.VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO
        code = ffi.new("uint32_t[]", len(module.spirv) // 4)
        ffi.memmove(code, module.spirv, len(module.spirv))
        shader.codeSize, shader.pCode = len(module.spirv), code
        shader_out = ffi.new("VkShaderModule*")
        check(lib.vkCreateShaderModule(device.handle, shader, ffi.NULL, shader_out), doing)
        try:
            info = ffi.new("VkComputePipelineCreateInfo*")
            info.sType = lib.VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO
            info.layout = self.layout
            name = ffi.new("char[]", b"main")
            info.stage.sType = lib.VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO
            info.stage.stage, info.stage.module, info.stage.pName = (
                _COMPUTE_STAGE,
                shader_out[0],
                name,
            )
            size = module.signature.subgroup
            if size and self._sized(size):
                required = ffi.new("VkPipelineShaderStageRequiredSubgroupSizeCreateInfo*")
                required.sType = (
                    lib.VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO
                )
                required.requiredSubgroupSize = size
                info.stage.pNext = required
            out = ffi.new("VkPipeline*")
            result = lib.vkCreateComputePipelines(
                device.handle, self._cache.handle, 1, info, ffi.NULL, out
            )
            check(result, doing)
            self.handle = out[0]
        finally:
            lib.vkDestroyShaderModule(device.handle, shader_out[0], ffi.NULL)

    def close(self) -> None:
        """Releases the pipeline and its layouts; a second call does nothing."""
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        if self.handle is not None:
            lib.vkDestroyPipeline(device.handle, self.handle, ffi.NULL)
        if self.layout is not None:
            lib.vkDestroyPipelineLayout(device.handle, self.layout, ffi.NULL)
        if self.set_layout is not None:
            lib.vkDestroyDescriptorSetLayout(device.handle, self.set_layout, ffi.NULL)
        self.handle = self.layout = self.set_layout = None
        device.untrack("pipeline", self)
