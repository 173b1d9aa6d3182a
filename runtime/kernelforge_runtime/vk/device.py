"""A logical device: chosen by name or index, features enabled, everything it owns counted."""

from __future__ import annotations

import logging
import os
from collections import Counter
from types import TracebackType
from typing import Any, Protocol

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import flexible
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.host_buffer import LEAST_BYTES, HostBuffer, takes_host_memory
from kernelforge_runtime.vk.loader import Instance, check
from kernelforge_runtime.vk.memory import MemoryAccount, Placement, limit_of
from kernelforge_runtime.vk.physical import (
    COOPERATIVE_MATRIX,
    EXTERNAL_MEMORY_FD,
    EXTERNAL_MEMORY_HOST,
    INTEGER_DOT,
    PhysicalDevice,
    enumerate_physical,
)
from kernelforge_runtime.vk.pipeline import Pipeline
from kernelforge_runtime.vk.pipeline_cache import PipelineCache
from kernelforge_runtime.vk.staging import Staging

log = logging.getLogger(__name__)

_PREFERENCE = {"discrete": 0, "integrated": 1, "virtual": 2, "other": 3, "cpu": 4}
_DEVICE_LOCAL, _HOST_VISIBLE, _HOST_COHERENT, _HOST_CACHED = 0x1, 0x2, 0x4, 0x8
VALIDATION_VARIABLE = "KERNELFORGE_VALIDATION"
DEVICE_VARIABLE = "KERNELFORGE_DEVICE"
VALIDATION_MESSAGES: list[str] = []
"""What the validation layer said to any device of this process, for tests to look at."""


class Owned(Protocol):
    """Anything that a device must see released."""

    def close(self) -> None:
        """Releases the Vulkan objects behind it."""


class Device:
    """An open Vulkan device with one compute queue. Use it as a context manager, or close it.

    Attributes:
        info: names, limits and features.
        handle: the VkDevice.
        memory: what its buffers take.
        lost: what it was doing when it was lost; empty while it answers. A lost device can only be
            closed; `open_device` gives a new one.
    """

    def __init__(
        self, instance: Instance, physical: PhysicalDevice, memory: int | None = None
    ) -> None:
        self.instance, self.physical, self.info = instance, physical, physical.info
        self.memory = MemoryAccount(physical, memory)
        self.ffi, self.lib = instance.ffi, instance.lib
        self.lost = ""
        self._owned: dict[int, tuple[str, Owned]] = {}
        self._pipelines: dict[tuple[str, Any, int], Pipeline] = {}
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
        self.pipeline_cache = PipelineCache(self)
        self.staging = Staging(self)
        self._takes_host_memory = takes_host_memory(self)

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

    def buffer(self, nbytes: int, name: str = "", host_visible: bool = False) -> Buffer:
        """A new storage buffer of `nbytes` bytes; contents are undefined until written.

        Raises:
            OutOfMemoryError: it does not fit.
        """
        if nbytes >= LEAST_BYTES and self._takes_host_memory:
            return HostBuffer(self, nbytes, name, host_visible)
        return Buffer(self, nbytes, name, host_visible)

    def pipeline(self, module: ShaderModule, room: int = 0) -> Pipeline:
        """The pipeline of a module, made once per device, and per room for windows.

        Args:
            module: the kernel.
            room: how many windows it can show of a buffer, see `Signature.window_room`.

        Raises:
            DeviceError: the driver refuses it, or the device lacks a feature that it needs.
            SpirvError: the module does not match its signature.
        """
        key = (module.sha256, module.signature, room)
        if key not in self._pipelines:
            self._pipelines[key] = Pipeline(self, module, room)
        return self._pipelines[key]

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

    def placement(self, host_visible: bool) -> Placement:
        """Where buffers go that the host must see, or need not see."""
        return Buffer.placement(self, host_visible)

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

    def close(self) -> None:
        """Releases everything the device owns, then the device; a second call does nothing."""
        if self.handle is None:
            return
        ffi, lib = self.ffi, self.lib
        lib.vkDeviceWaitIdle(self.handle)
        self.staging.close()
        for _, item in reversed(list(self._owned.values())):
            item.close()
        self._pipelines.clear()
        self.pipeline_cache.close()
        lib.vkDestroyCommandPool(self.handle, self.command_pool, ffi.NULL)
        lib.vkDestroyDevice(self.handle, ffi.NULL)
        self.handle = None
        VALIDATION_MESSAGES.extend(self.instance.messages)
        self.instance.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def list_devices() -> list[DeviceInfo]:
    """Every Vulkan device of this machine, in the loader's order.

    Raises:
        DeviceError: there is no Vulkan loader.
    """
    instance = Instance()
    try:
        return [physical.info for physical in enumerate_physical(instance)]
    finally:
        instance.close()


def open_device(
    selector: int | str | None = None,
    validation: bool | None = None,
    memory: int | str | None = None,
) -> Device:
    """Opens a Vulkan device.

    Args:
        selector: None for the best one (a discrete GPU first, a software device last, or what
            the environment variable KERNELFORGE_DEVICE names); an index of `list_devices`;
            part of a name or slug; a device UUID in hex.
        validation: run under VK_LAYER_KHRONOS_validation; None asks KERNELFORGE_VALIDATION.
        memory: bytes that its buffers may take, or a text like 2GiB; None asks KERNELFORGE_MEMORY,
            and without it there is no limit but the device's.

    Raises:
        DeviceError: no such device, or Vulkan is not there.
    """
    if validation is None:
        validation = os.environ.get(VALIDATION_VARIABLE, "0") not in ("", "0")
    if selector is None:
        selector = os.environ.get(DEVICE_VARIABLE) or None
    limit = limit_of(memory)
    instance = Instance(validation)
    try:
        return Device(instance, _choose(enumerate_physical(instance), selector), limit)
    except BaseException:
        instance.close()
        raise


def _choose(found: list[PhysicalDevice], selector: int | str | None) -> PhysicalDevice:
    usable = [p for p in found if p.info.api_version >= (1, 2, 0)]
    if not usable:
        seen = ", ".join(p.info.name for p in found) or "none"
        raise DeviceError(
            f"no Vulkan 1.2 device (found: {seen}); install a driver "
            "(apt-get install mesa-vulkan-drivers) or run on the CPU with --device cpu"
        )
    names = ", ".join(f"{i}: {p.info.name}" for i, p in enumerate(found))
    if selector is None or selector == "":
        # Of two of a type, the one that offers more: of software devices that is the faster one.
        return min(usable, key=lambda p: (_PREFERENCE[p.info.device_type], -len(p.info.features)))
    digits = isinstance(selector, int) or (selector.isascii() and selector.isdigit())
    index = int(selector) if digits else -1
    if 0 <= index < len(found):
        if found[index] not in usable:
            raise DeviceError(f"device {index} ({found[index].info.name}) has no Vulkan 1.2")
        return found[index]
    wanted = str(selector).lower()  # "4090" is no index, but part of a name
    for physical in usable if isinstance(selector, str) else ():
        info = physical.info
        if wanted in info.name.lower() or wanted in info.slug or wanted == info.device_uuid:
            return physical
    raise DeviceError(f"device {selector!r} was asked for; this machine has {names}")
