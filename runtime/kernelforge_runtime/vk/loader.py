"""The door to Vulkan: the loader library, the instance, the validation layer, VkResult to errors.

Calls go through the `vulkan` package's cffi objects (`ffi`, `lib`) and not through its Python
wrappers: those convert every argument anew on each call, which a token loop would pay for, and
some (vkGetBufferDeviceAddress) return the wrong thing.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from kernelforge_runtime.errors import DeviceError, DeviceLostError, OutOfMemoryError

log = logging.getLogger(__name__)

VALIDATION_LAYER = "VK_LAYER_KHRONOS_validation"
PORTABILITY_FLAG = 0x1  # VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR, for MoltenVK

_OUT_OF_MEMORY = {-1: "host", -2: "device"}
_RESULTS = {
    -1: "VK_ERROR_OUT_OF_HOST_MEMORY",
    -2: "VK_ERROR_OUT_OF_DEVICE_MEMORY",
    -3: "VK_ERROR_INITIALIZATION_FAILED",
    -4: "VK_ERROR_DEVICE_LOST",
    -5: "VK_ERROR_MEMORY_MAP_FAILED",
    -6: "VK_ERROR_LAYER_NOT_PRESENT",
    -7: "VK_ERROR_EXTENSION_NOT_PRESENT",
    -8: "VK_ERROR_FEATURE_NOT_PRESENT",
    -9: "VK_ERROR_INCOMPATIBLE_DRIVER",
    -10: "VK_ERROR_TOO_MANY_OBJECTS",
    -12: "VK_ERROR_FRAGMENTED_POOL",
    -13: "VK_ERROR_UNKNOWN",
    2: "VK_TIMEOUT",
    1: "VK_NOT_READY",
    5: "VK_INCOMPLETE",
    -1000069000: "VK_ERROR_OUT_OF_POOL_MEMORY",
    -1000012000: "VK_ERROR_INVALID_SHADER_NV",
    -1000072003: "VK_ERROR_INVALID_EXTERNAL_HANDLE",
}

NO_LOADER = (
    "no Vulkan loader on this machine: libvulkan.so.1 was not found; install it "
    "(apt-get install libvulkan1 mesa-vulkan-drivers) or run on the CPU with --device cpu"
)


@cache
def api() -> tuple[Any, Any]:
    """(ffi, lib) of the vulkan package.

    Raises:
        DeviceError: the Vulkan loader library is not installed.
    """
    try:
        from vulkan import _vulkan
    except (OSError, ImportError) as error:
        raise DeviceError(NO_LOADER) from error
    return _vulkan.ffi, _vulkan.lib


def check(result: int, doing: str) -> None:
    """Raises the error that belongs to a VkResult; `doing` says what was being done.

    Raises:
        OutOfMemoryError: host or device memory ran out.
        DeviceLostError: the device stopped answering.
        DeviceError: any other failure.
    """
    if result == 0:
        return
    name = _RESULTS.get(result, f"VkResult {result}")
    if result in _OUT_OF_MEMORY:
        raise OutOfMemoryError(f"{doing}: out of {_OUT_OF_MEMORY[result]} memory ({name})")
    if result == -4:
        raise DeviceLostError(f"{doing}: the device was lost ({name}); open it again")
    raise DeviceError(f"{doing}: {name}")


class Instance:
    """A VkInstance, with the validation layer and its messages when asked for.

    Attributes:
        handle: the VkInstance.
        messages: validation errors and warnings so far, in order.
    """

    def __init__(self, validation: bool = False) -> None:
        self.ffi, self.lib = api()
        ffi, lib = self.ffi, self.lib
        self.messages: list[str] = []
        self._messenger: Any = None
        layers, extensions = [], []
        if validation:
            if VALIDATION_LAYER not in self._layers():
                raise DeviceError(
                    f"validation was asked for, but {VALIDATION_LAYER} is not installed; "
                    "install it (apt-get install vulkan-validationlayers)"
                )
            layers.append(ffi.new("char[]", VALIDATION_LAYER.encode()))
            extensions.append(ffi.new("char[]", b"VK_EXT_debug_utils"))
        application = ffi.new(
            "VkApplicationInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_APPLICATION_INFO,
                "pApplicationName": ffi.new("char[]", b"kernelforge"),
                "apiVersion": self._api_version(),
            },
        )
        layer_array = ffi.new("char*[]", layers)
        extension_array = ffi.new("char*[]", extensions)
        info = ffi.new(
            "VkInstanceCreateInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                "pApplicationInfo": application,
                "enabledLayerCount": len(layers),
                "ppEnabledLayerNames": layer_array,
                "enabledExtensionCount": len(extensions),
                "ppEnabledExtensionNames": extension_array,
            },
        )
        out = ffi.new("VkInstance*")
        result = lib.vkCreateInstance(info, ffi.NULL, out)
        if result == -9:
            raise DeviceError(
                "no Vulkan device: the loader found no driver; install one "
                "(apt-get install mesa-vulkan-drivers) or run on the CPU with --device cpu"
            )
        check(result, "creating the Vulkan instance")
        self.handle = out[0]
        if validation:
            self._listen()

    def _api_version(self) -> int:
        version = self.ffi.new("uint32_t*")
        check(self.lib.vkEnumerateInstanceVersion(version), "reading the Vulkan version")
        if version[0] < (1 << 22 | 2 << 12):
            major, minor = version[0] >> 22, version[0] >> 12 & 0x3FF
            raise DeviceError(
                f"the Vulkan loader is version {major}.{minor}; 1.2 or later is needed"
            )
        return int(min(version[0], 1 << 22 | 3 << 12))

    def _layers(self) -> list[str]:
        ffi, lib = self.ffi, self.lib
        count = ffi.new("uint32_t*")
        check(lib.vkEnumerateInstanceLayerProperties(count, ffi.NULL), "listing Vulkan layers")
        found = ffi.new("VkLayerProperties[]", max(count[0], 1))
        check(lib.vkEnumerateInstanceLayerProperties(count, found), "listing Vulkan layers")
        return [ffi.string(found[i].layerName).decode() for i in range(count[0])]

    def procedure(self, name: str) -> Any:
        """An extension's function, ready to call.

        Raises:
            DeviceError: the loader does not know it.
        """
        address = self.lib.vkGetInstanceProcAddr(self.handle, name.encode())
        if address == self.ffi.NULL:
            raise DeviceError(f"this Vulkan loader has no function {name}")
        return self.ffi.cast(f"PFN_{name}", address)

    def _listen(self) -> None:
        ffi, lib = self.ffi, self.lib
        warning, error = 0x100, 0x1000

        def heard(severity: int, _types: int, data: Any, _user: Any) -> int:
            text = ffi.string(data.pMessage).decode(errors="replace")
            self.messages.append(text)
            log.log(logging.ERROR if severity >= error else logging.WARNING, "%s", text)
            return 0

        self._heard = ffi.callback(
            "VkBool32(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,"
            " const VkDebugUtilsMessengerCallbackDataEXT*, void*)",
            heard,
        )
        info = ffi.new(
            "VkDebugUtilsMessengerCreateInfoEXT*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
                "messageSeverity": warning | error,
                "messageType": 0x2 | 0x4,  # validation and performance
                "pfnUserCallback": self._heard,
            },
        )
        out = ffi.new("VkDebugUtilsMessengerEXT*")
        create = self.procedure("vkCreateDebugUtilsMessengerEXT")
        check(create(self.handle, info, ffi.NULL, out), "listening to the validation layer")
        self._messenger = out[0]

    def close(self) -> None:
        """Destroys the instance; a second call does nothing."""
        if self.handle is None:
            return
        if self._messenger is not None:
            destroy = self.procedure("vkDestroyDebugUtilsMessengerEXT")
            destroy(self.handle, self._messenger, self.ffi.NULL)
        self.lib.vkDestroyInstance(self.handle, self.ffi.NULL)
        self.handle = None
