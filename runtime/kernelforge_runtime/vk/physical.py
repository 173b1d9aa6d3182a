"""Physical devices: enumerate them and read what they can do into a DeviceInfo."""

from __future__ import annotations

from typing import Any

from kernelforge_runtime.abi.device_info import CooperativeShape, DeviceInfo, FlexibleMatrix
from kernelforge_runtime.abi.windows import MOST_BUFFERS, MOST_WINDOWS, WINDOW_BYTES
from kernelforge_runtime.vk import flexible
from kernelforge_runtime.vk.loader import Instance, check
from kernelforge_runtime.vk.processor import processor_name

_TYPES = {0: "other", 1: "integrated", 2: "discrete", 3: "virtual", 4: "cpu"}
_SUBGROUP_BITS = {
    "subgroup_arithmetic": 0x4,
    "subgroup_shuffle": 0x10 | 0x8,  # shuffle and ballot: broadcast is a ballot operation
    "subgroup_clustered": 0x40,
}
_COMPUTE_STAGE = 0x20
_SUBGROUP_SCOPE = 3
_COMPONENTS = {0: "f16", 1: "f32", 2: "f64", 3: "i8", 5: "i32", 7: "u8", 9: "u32"}
"""VkComponentTypeKHR by its number, as far as devices multiply them."""
BUDGET_EXTENSION = "VK_EXT_memory_budget"
COOPERATIVE_MATRIX = "VK_KHR_cooperative_matrix"
EXTERNAL_MEMORY_FD = "VK_KHR_external_memory_fd"
EXTERNAL_MEMORY_HOST = "VK_EXT_external_memory_host"
INTEGER_DOT = "VK_KHR_shader_integer_dot_product"
"""By this extension, or as a part of Vulkan 1.3."""


class PhysicalDevice:
    """One entry of vkEnumeratePhysicalDevices.

    Attributes:
        info: everything a kernel may ask.
        queue_family: index of the compute queue family used.
        extensions: names of the device extensions it offers.
        uniform_alignment: of what is bound as a uniform buffer, in bytes.
        memory_types: (property flags, heap index) of each.
        heaps: bytes of each memory heap.
    """

    def __init__(self, instance: Instance, handle: Any) -> None:
        self.ffi, self.lib, self.handle = instance.ffi, instance.lib, handle
        self._instance = instance
        self.extensions = self._extensions()
        self.queue_family, timestamp_bits = self._queue_family()
        self.memory_types, self.heaps, local = self._memory()
        self.uniform_alignment = 0
        self.info = self._info(timestamp_bits, max(local))

    def _extensions(self) -> frozenset[str]:
        ffi, lib = self.ffi, self.lib
        count = ffi.new("uint32_t*")
        doing = "listing device extensions"
        check(
            lib.vkEnumerateDeviceExtensionProperties(self.handle, ffi.NULL, count, ffi.NULL), doing
        )
        found = ffi.new("VkExtensionProperties[]", max(count[0], 1))
        check(lib.vkEnumerateDeviceExtensionProperties(self.handle, ffi.NULL, count, found), doing)
        return frozenset(ffi.string(found[i].extensionName).decode() for i in range(count[0]))

    def _queue_family(self) -> tuple[int, int]:
        ffi, lib = self.ffi, self.lib
        count = ffi.new("uint32_t*")
        lib.vkGetPhysicalDeviceQueueFamilyProperties(self.handle, count, ffi.NULL)
        families = ffi.new("VkQueueFamilyProperties[]", count[0])
        lib.vkGetPhysicalDeviceQueueFamilyProperties(self.handle, count, families)
        for index in range(count[0]):
            if families[index].queueFlags & 0x2:  # VK_QUEUE_COMPUTE_BIT
                return index, int(families[index].timestampValidBits)
        return -1, 0

    def _memory(self) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """Memory types as (property flags, heap index); all heaps' bytes, and the device's own."""
        properties = self.ffi.new("VkPhysicalDeviceMemoryProperties*")
        self.lib.vkGetPhysicalDeviceMemoryProperties(self.handle, properties)
        types = [
            (int(properties.memoryTypes[i].propertyFlags), int(properties.memoryTypes[i].heapIndex))
            for i in range(properties.memoryTypeCount)
        ]
        heaps = [int(properties.memoryHeaps[i].size) for i in range(properties.memoryHeapCount)]
        local = [size for i, size in enumerate(heaps) if int(properties.memoryHeaps[i].flags) & 0x1]
        return types, heaps, local or [0]

    def memory_budget(self) -> list[tuple[int, int]] | None:
        """(bytes that this process may use, bytes it does) of each heap, by the driver, now.

        None where the driver does not tell.
        """
        if BUDGET_EXTENSION not in self.extensions:
            return None
        ffi, lib = self.ffi, self.lib
        budget = ffi.new("VkPhysicalDeviceMemoryBudgetPropertiesEXT*")
        budget.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT
        properties = ffi.new("VkPhysicalDeviceMemoryProperties2*")
        properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2
        properties.pNext = budget
        lib.vkGetPhysicalDeviceMemoryProperties2(self.handle, properties)
        return [
            (int(budget.heapBudget[i]), int(budget.heapUsage[i])) for i in range(len(self.heaps))
        ]

    def _info(self, timestamp_bits: int, memory_bytes: int) -> DeviceInfo:
        ffi, lib = self.ffi, self.lib
        plain = ffi.new("VkPhysicalDeviceProperties*")
        lib.vkGetPhysicalDeviceProperties(self.handle, plain)
        version = int(plain.apiVersion)
        modern = version >= (1 << 22 | 2 << 12)
        controlled = (
            version >= (1 << 22 | 3 << 12) or "VK_EXT_subgroup_size_control" in self.extensions
        )

        size_control = ffi.new("VkPhysicalDeviceSubgroupSizeControlProperties*")
        size_control.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES
        driver = ffi.new("VkPhysicalDeviceDriverProperties*")
        driver.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES
        driver.pNext = size_control if controlled else ffi.NULL
        identity = ffi.new("VkPhysicalDeviceIDProperties*")
        identity.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES
        identity.pNext = driver if modern else ffi.NULL
        subgroup = ffi.new("VkPhysicalDeviceSubgroupProperties*")
        subgroup.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES
        subgroup.pNext = identity
        properties = ffi.new("VkPhysicalDeviceProperties2*")
        properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
        properties.pNext = subgroup
        lib.vkGetPhysicalDeviceProperties2(self.handle, properties)
        limits = properties.properties.limits
        self.uniform_alignment = int(limits.minUniformBufferOffsetAlignment)
        size = int(subgroup.subgroupSize)

        features = set(self._features(version))
        if subgroup.supportedStages & _COMPUTE_STAGE:
            operations = int(subgroup.supportedOperations)
            features |= {n for n, bits in _SUBGROUP_BITS.items() if operations & bits == bits}
        if (
            min(limits.maxPerStageDescriptorUniformBuffers, limits.maxDescriptorSetUniformBuffers)
            < MOST_BUFFERS * MOST_WINDOWS
            or limits.maxUniformBufferRange < WINDOW_BYTES
        ):
            features.discard("uniform_windows")
        shapes = self._cooperative_shapes() if "cooperative_matrix" in features else ()
        matrices: tuple[FlexibleMatrix, ...] = ()
        if not shapes:
            features.discard("cooperative_matrix")
        elif flexible.EXTENSION in self.extensions:
            features |= flexible.features(self._instance, self.handle)
            matrices = flexible.matrices(self._instance, self.handle, _COMPONENTS)
        stages = int(size_control.requiredSubgroupSizeStages) if controlled else 0
        if not stages & _COMPUTE_STAGE:
            features.discard("subgroup_size_control")
        device_type = _TYPES.get(int(plain.deviceType), "other")
        return DeviceInfo(
            name=ffi.string(plain.deviceName).decode(errors="replace"),
            device_type=device_type,
            vendor_id=int(plain.vendorID),
            device_id=int(plain.deviceID),
            driver_name=ffi.string(driver.driverName).decode(errors="replace"),
            driver_info=ffi.string(driver.driverInfo).decode(errors="replace"),
            driver_version=int(plain.driverVersion),
            api_version=(version >> 22 & 0x7F, version >> 12 & 0x3FF, version & 0xFFF),
            device_uuid=bytes(identity.deviceUUID).hex(),
            pipeline_cache_uuid=bytes(plain.pipelineCacheUUID).hex(),
            subgroup_size=size,
            subgroup_min=int(size_control.minSubgroupSize) if stages else size,
            subgroup_max=int(size_control.maxSubgroupSize) if stages else size,
            max_workgroup_invocations=int(limits.maxComputeWorkGroupInvocations),
            max_workgroup_size=_triple(limits.maxComputeWorkGroupSize),
            max_workgroup_count=_triple(limits.maxComputeWorkGroupCount),
            max_shared_memory=int(limits.maxComputeSharedMemorySize),
            max_push_constants=int(limits.maxPushConstantsSize),
            max_storage_buffer=int(limits.maxStorageBufferRange),
            min_storage_alignment=int(limits.minStorageBufferOffsetAlignment),
            timestamp_period_ns=float(limits.timestampPeriod),
            timestamp_bits=timestamp_bits,
            memory_bytes=memory_bytes,
            features=frozenset(features),
            cooperative_shapes=shapes,
            flexible_matrices=matrices,
            processor=processor_name() if device_type == "cpu" else "",
        )

    def _features(self, version: int) -> list[str]:
        """Optional features that the device offers; enabled later by the same names."""
        ffi, lib = self.ffi, self.lib
        if version < (1 << 22 | 2 << 12):
            return []
        v13 = ffi.new("VkPhysicalDeviceVulkan13Features*")
        v13.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES
        sizes = ffi.new("VkPhysicalDeviceSubgroupSizeControlFeatures*")
        sizes.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES
        v12 = ffi.new("VkPhysicalDeviceVulkan12Features*")
        v12.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES
        v11 = ffi.new("VkPhysicalDeviceVulkan11Features*")
        v11.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES
        v11.pNext = v12
        is_13 = version >= (1 << 22 | 3 << 12)
        if is_13:
            v12.pNext = v13
        elif "VK_EXT_subgroup_size_control" in self.extensions:
            v12.pNext = sizes
        matrices = ffi.new("VkPhysicalDeviceCooperativeMatrixFeaturesKHR*")
        matrices.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR
        matrices.pNext = v11
        dots = ffi.new("VkPhysicalDeviceShaderIntegerDotProductFeatures*")
        dots.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES
        if not is_13 and INTEGER_DOT in self.extensions:
            dots.pNext, v12.pNext = v12.pNext, dots
        cooperative = COOPERATIVE_MATRIX in self.extensions
        all_features = ffi.new("VkPhysicalDeviceFeatures2*")
        all_features.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2
        all_features.pNext = matrices if cooperative else v11
        lib.vkGetPhysicalDeviceFeatures2(self.handle, all_features)
        offered = {
            "buffer_device_address": v12.bufferDeviceAddress,
            # Cooperative matrices are defined under the Vulkan memory model only, in which atomics
            # of any kernel need the device's scope.
            "cooperative_matrix": matrices.cooperativeMatrix
            and v12.vulkanMemoryModel
            and v12.vulkanMemoryModelDeviceScope,
            "float16": v12.shaderFloat16,
            "int8": v12.shaderInt8,
            "integer_dot": v13.shaderIntegerDotProduct or dots.shaderIntegerDotProduct,
            "int64": all_features.features.shaderInt64,
            "storage16": v11.storageBuffer16BitAccess,
            "storage8": v12.storageBuffer8BitAccess,
            "subgroup_size_control": v13.subgroupSizeControl
            if is_13
            else sizes.subgroupSizeControl,
            "uniform_windows": v12.runtimeDescriptorArray
            and v12.descriptorBindingVariableDescriptorCount
            and all_features.features.shaderUniformBufferArrayDynamicIndexing,
        }
        return [name for name, value in offered.items() if value]

    def _cooperative_shapes(self) -> tuple[CooperativeShape, ...]:
        """What the device multiplies as matrices of a subgroup, in compute shaders."""
        ffi, lib = self.ffi, self.lib
        stages = ffi.new("VkPhysicalDeviceCooperativeMatrixPropertiesKHR*")
        stages.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_PROPERTIES_KHR
        properties = ffi.new("VkPhysicalDeviceProperties2*")
        properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
        properties.pNext = stages
        lib.vkGetPhysicalDeviceProperties2(self.handle, properties)
        if not stages.cooperativeMatrixSupportedStages & _COMPUTE_STAGE:
            return ()
        ask = self._instance.procedure("vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR")
        count, doing = ffi.new("uint32_t*"), "listing cooperative matrices"
        check(ask(self.handle, count, ffi.NULL), doing)
        found = ffi.new("VkCooperativeMatrixPropertiesKHR[]", max(count[0], 1))
        for entry in found:
            entry.sType = lib.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
        check(ask(self.handle, count, found), doing)
        shapes: list[CooperativeShape] = []
        for entry in found[0 : count[0]]:
            kinds = [int(getattr(entry, f"{name}Type")) for name in ("A", "B", "C", "Result")]
            if int(entry.scope) != _SUBGROUP_SCOPE or entry.saturatingAccumulation:
                continue
            if all(kind in _COMPONENTS for kind in kinds):
                a, b, c, result = (_COMPONENTS[kind] for kind in kinds)
                sizes = int(entry.MSize), int(entry.NSize), int(entry.KSize)
                shapes.append((*sizes, a, b, c, result))
        return tuple(shapes)


def enumerate_physical(instance: Instance) -> list[PhysicalDevice]:
    """Every physical device with a compute queue, in the loader's order."""
    ffi, lib = instance.ffi, instance.lib
    count = ffi.new("uint32_t*")
    result = lib.vkEnumeratePhysicalDevices(instance.handle, count, ffi.NULL)
    if result == -3:  # a loader without any working driver answers so
        return []
    check(result, "listing Vulkan devices")
    handles = ffi.new("VkPhysicalDevice[]", max(count[0], 1))
    check(lib.vkEnumeratePhysicalDevices(instance.handle, count, handles), "listing Vulkan devices")
    found = [PhysicalDevice(instance, handles[i]) for i in range(count[0])]
    return [p for p in found if p.queue_family >= 0]


def _triple(values: Any) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])
