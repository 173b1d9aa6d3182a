"""VK_NV_cooperative_matrix2: matrices of many sizes, of a subgroup or of a whole workgroup.

The vulkan package does not know its structures, so they are written and read as words here.
Source: Vulkan specification, VK_NV_cooperative_matrix2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernelforge_runtime.abi.device_info import FlexibleMatrix
from kernelforge_runtime.vk.loader import Instance, check

EXTENSION = "VK_NV_cooperative_matrix2"
FEATURES = (
    "matrix_workgroup",
    "matrix_flexible",
    "",  # reductions
    "",  # conversions
    "matrix_elements",
    "matrix_tensors",
    "",  # block loads
)
"""Of VkPhysicalDeviceCooperativeMatrix2FeaturesNV, in its order; empty where no kernel asks."""
_FEATURES_TYPE, _FLEXIBLE_TYPE, _PROPERTIES_TYPE = 1000593000, 1000593001, 1000593002
_HEAD = 4
"""Words of sType and pNext, padded as 64-bit structures are."""
_FLEXIBLE_WORDS = _HEAD + 10
_LIST = "vkGetPhysicalDeviceCooperativeMatrixFlexibleDimensionsPropertiesNV"
_SCOPES = {2: "workgroup", 3: "subgroup"}


class Words:
    """A Vulkan structure of 32-bit members behind sType and pNext; `pointer` goes into a chain."""

    def __init__(self, ffi: Any, kind: int, values: Sequence[int], following: Any = None) -> None:
        self._whole = ffi.new("uint64_t[]", (_HEAD + len(values) + 1) // 2)
        self.words = ffi.cast("uint32_t*", self._whole)
        self.words[0] = kind
        if following is not None:
            self._whole[1] = int(ffi.cast("uintptr_t", following))
        self.pointer = ffi.cast("void*", self._whole)
        self._count = len(values)
        for i, value in enumerate(values):
            self.words[_HEAD + i] = value

    @property
    def values(self) -> list[int]:
        """The members."""
        return [int(self.words[_HEAD + i]) for i in range(self._count)]


def enabling(ffi: Any, offered: frozenset[str], following: Any) -> Words:
    """The features structure that enables those of FEATURES that are offered."""
    values = [int(name in offered) for name in FEATURES]
    return Words(ffi, _FEATURES_TYPE, values, following)


def features(instance: Instance, handle: Any) -> set[str]:
    """Those of FEATURES that the device has; it must list the extension."""
    ffi, lib = instance.ffi, instance.lib
    found = Words(ffi, _FEATURES_TYPE, [0] * len(FEATURES))
    whole = ffi.new("VkPhysicalDeviceFeatures2*")
    whole.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2
    whole.pNext = found.pointer
    lib.vkGetPhysicalDeviceFeatures2(handle, whole)
    return {name for name, value in zip(FEATURES, found.values, strict=True) if name and value}


def matrices(
    instance: Instance, handle: Any, components: dict[int, str]
) -> tuple[FlexibleMatrix, ...]:
    """What the device multiplies at multiples of a size, for types that are known.

    Args:
        instance: of the device.
        handle: the physical device, which must list the extension.
        components: names of VkComponentTypeKHR by number.
    """
    ffi, lib = instance.ffi, instance.lib
    limits = Words(ffi, _PROPERTIES_TYPE, [0] * 3)
    properties = ffi.new("VkPhysicalDeviceProperties2*")
    properties.sType = lib.VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2
    properties.pNext = limits.pointer
    lib.vkGetPhysicalDeviceProperties2(handle, properties)
    largest = limits.values[1]
    address = lib.vkGetInstanceProcAddr(instance.handle, _LIST.encode())
    if address == ffi.NULL:
        return ()
    ask = ffi.cast("VkResult(*)(VkPhysicalDevice, uint32_t*, void*)", address)
    count, doing = ffi.new("uint32_t*"), "listing flexible matrices"
    check(ask(handle, count, ffi.NULL), doing)
    entries = ffi.new("uint64_t[]", max(count[0], 1) * _FLEXIBLE_WORDS // 2)
    words = ffi.cast("uint32_t*", entries)
    for i in range(count[0]):
        words[i * _FLEXIBLE_WORDS] = _FLEXIBLE_TYPE
    check(ask(handle, count, entries), doing)
    found = []
    for i in range(count[0]):
        start = i * _FLEXIBLE_WORDS + _HEAD
        m, n, k, a, b, c, d, saturating, scope, invocations = (
            int(words[start + j]) for j in range(10)
        )
        if saturating or scope not in _SCOPES or not {a, b, c, d} <= components.keys():
            continue
        types = components[a], components[b], components[c], components[d]
        found.append((m, n, k, *types, _SCOPES[scope], invocations, largest))
    return tuple(found)
