"""Functions of extensions, which the loader does not export by name."""

from __future__ import annotations

from collections.abc import Callable

from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.logical_device import LogicalDevice


def procedure(device: LogicalDevice, name: str) -> Callable[..., int]:
    """A function of an extension that the device was opened with.

    Raises:
        DeviceError: the driver does not have it.
    """
    address = device.lib.vkGetDeviceProcAddr(device.handle, name.encode())
    if address == device.ffi.NULL:
        raise DeviceError(f"{device.info.name} has no function {name}")
    found: Callable[..., int] = device.ffi.cast(f"PFN_{name}", address)
    return found
