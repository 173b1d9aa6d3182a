"""The VkDevice itself: features enabled, one compute queue, everything made on it counted.

What is made on a device knows it as this; `device.Device` knows how to make them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import flexible
from kernelforge_runtime.vk.loader import Instance, check
from kernelforge_runtime.vk.memory import MemoryAccount
from kernelforge_runtime.vk.physical import (
    COOPERATIVE_MATRIX,
    EXTERNAL_MEMORY_FD,
    EXTERNAL_MEMORY_HOST,
    INTEGER_DOT,
    PhysicalDevice,
)

_DEVICE_LOCAL, _HOST_VISIBLE, _HOST_COHERENT, _HOST_CACHED = 0x1, 0x2, 0x4, 0x8


class Owned(Protocol):
    """Anything that a device must see released."""

    def close(self) -> None:
        """Releases the Vulkan objects behind it."""


class Copies(Protocol):
    """What carries bytes between the host and buffers that it cannot see."""

    def upload(self, target: Any, raw: NDArray[np.uint8], offset: int) -> None:
        """Copies bytes into a buffer from byte `offset`."""

    def download(self, source: Any, nbytes: int, offset: int) -> NDArray[np.uint8]:
        """Bytes of a buffer from byte `offset`."""

    def fill(self, target: Any, word: int) -> None:
        """Writes a 32-bit word all over a buffer."""


class LogicalDevice:
    """A VkDevice with one compute queue and a command pool.

    Attributes:
        info: names, limits and features.
        handle: the VkDevice.
        memory: what its buffers take.
        staging: carries bytes to memory that the host cannot see; set by who opens the device.
        lost: what it was doing when it was lost; empty while it answers. A lost device can only be
            closed; `open_device` gives a new one.
    """

    staging: Copies

    def __init__(
        self, instance: Instance, physical: PhysicalDevice, memory: int | None = None
    ) -> None:
        self.instance, self.physical, self.info = instance, physical, physical.info
        self.memory = MemoryAccount(physical, memory)
        self.ffi, self.lib = instance.ffi, instance.lib
        self.lost = ""
        self._owned: dict[int, tuple[str, Owned]] = {}
        self.handle: Any = self._create()
        ffi, lib = self.ffi, self.lib
        queue = ffi.new("VkQueue*")
        lib.vkGetDeviceQueue(self.handle, physical.queue_family, 0, queue)
        self.queue: Any = queue[0]
        pool = ffi.new("VkCommandPoolCreateInfo*")
        pool.sType = lib.VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO
        pool.flags, pool.queueFamilyIndex = 0x2, physical.queue_family
        out = ffi.new("VkCommandPool*")
        check(lib.vkCreateCommandPool(self.handle, pool, ffi.NULL, out), "making a command pool")
        self.command_pool: Any = out[0]

    def _create(self) -> Any:
        ffi, lib, offered = self.ffi, self.lib, self.info.features
        priority = ffi.new("float[1]", [1.0])
        queue = ffi.new("VkDeviceQueueCreateInfo*")
        queue.sType = lib.VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO
        queue.queueFamilyIndex = self.physical.queue_family
        queue.queueCount, queue.pQueuePriorities = 1, priority
        is_13 = self.info.api_version >= (1, 3, 0)
        extensions = []
        v12 = ffi.new("VkPhysicalDeviceVulkan12Features*")
        v12.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES
        v12.bufferDeviceAddress = "buffer_device_address" in offered
        v12.shaderFloat16 = "float16" in offered
        v12.shaderInt8 = "int8" in offered
        v12.storageBuffer8BitAccess = "storage8" in offered
        windows = "uniform_windows" in offered
        v12.runtimeDescriptorArray = v12.descriptorBindingVariableDescriptorCount = windows
        v11 = ffi.new("VkPhysicalDeviceVulkan11Features*")
        v11.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES
        v11.storageBuffer16BitAccess = "storage16" in offered
        v11.pNext = v12
        controlled, dots = "subgroup_size_control" in offered, "integer_dot" in offered
        if is_13:
            v13 = ffi.new("VkPhysicalDeviceVulkan13Features*")
            v13.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES
            v13.subgroupSizeControl, v13.shaderIntegerDotProduct = controlled, dots
            v12.pNext = v13
        elif controlled:
            extensions.append(ffi.new("char[]", b"VK_EXT_subgroup_size_control"))
            sizes = ffi.new("VkPhysicalDeviceSubgroupSizeControlFeatures*")
            sizes.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES
            sizes.subgroupSizeControl, v12.pNext = 1, sizes
        if dots and not is_13:
            extensions.append(ffi.new("char[]", INTEGER_DOT.encode()))
            added = ffi.new("VkPhysicalDeviceShaderIntegerDotProductFeatures*")
            added.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES
            added.shaderIntegerDotProduct, added.pNext, v12.pNext = 1, v12.pNext, added
        matrices = ffi.new("VkPhysicalDeviceCooperativeMatrixFeaturesKHR*")
        matrices.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR
        matrices.cooperativeMatrix, matrices.pNext = 1, v11
        if "cooperative_matrix" in offered:
            extensions.append(ffi.new("char[]", COOPERATIVE_MATRIX.encode()))
            v12.vulkanMemoryModel = v12.vulkanMemoryModelDeviceScope = 1
        features = ffi.new("VkPhysicalDeviceFeatures2*")
        features.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2
        features.pNext = matrices if "cooperative_matrix" in offered else v11
        if offered & {*flexible.FEATURES}:
            extensions.append(ffi.new("char[]", flexible.EXTENSION.encode()))
            chosen = flexible.enabling(ffi, offered, features.pNext)
            features.pNext = chosen.pointer
        features.features.shaderInt64 = "int64" in offered
        features.features.shaderUniformBufferArrayDynamicIndexing = windows
        for name in ("VK_KHR_portability_subset", EXTERNAL_MEMORY_FD, EXTERNAL_MEMORY_HOST):
            if name in self.physical.extensions:
                extensions.append(ffi.new("char[]", name.encode()))
        names = ffi.new("char*[]", extensions)
        info = ffi.new("VkDeviceCreateInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO
        info.pNext = features
        info.queueCreateInfoCount, info.pQueueCreateInfos = 1, queue
        info.enabledExtensionCount, info.ppEnabledExtensionNames = len(extensions), names
        out = ffi.new("VkDevice*")
        doing = f"opening {self.info.name}"
        check(lib.vkCreateDevice(self.physical.handle, info, ffi.NULL, out), doing)
        return out[0]

    def memory_type(self, allowed: int, host_visible: bool) -> tuple[int, int]:
        """Index and property flags of the best memory type among the `allowed` bits.

        On devices that share memory with the host, device memory the host can map is preferred:
        uploads are then plain copies.
        """
        shared = self.info.device_type in ("cpu", "integrated")
        mapped = _HOST_VISIBLE | _HOST_COHERENT
        if host_visible:
            wishes = [mapped | _HOST_CACHED, mapped]
        elif shared:
            wishes = [
                _DEVICE_LOCAL | mapped | _HOST_CACHED,
                _DEVICE_LOCAL | mapped,
                _DEVICE_LOCAL,
                0,
            ]
        else:
            wishes = [_DEVICE_LOCAL, 0]
        for wish in wishes:
            for index, (flags, _) in enumerate(self.physical.memory_types):
                if allowed >> index & 1 and flags & wish == wish:
                    return index, flags
        raise DeviceError(f"{self.info.name} has no memory type for this buffer")

    @property
    def live_objects(self) -> dict[str, int]:
        """How many Vulkan objects of each kind are open, e.g. `{"buffer": 3}`."""
        return dict(Counter(kind for kind, _ in self._owned.values()))

    def track(self, kind: str, item: Owned) -> None:
        """Counts an object; called by the object itself."""
        self._owned[id(item)] = (kind, item)

    def untrack(self, kind: str, item: Owned) -> None:
        """Stops counting an object that was released."""
        self._owned.pop(id(item), None)
