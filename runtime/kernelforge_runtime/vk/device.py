"""A device to work with: chosen by name or index; makes buffers and pipelines."""

from __future__ import annotations

import logging
import os
from types import TracebackType

from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.host_buffer import LEAST_BYTES, HostBuffer, takes_host_memory
from kernelforge_runtime.vk.loader import Instance
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.memory import Placement, limit_of
from kernelforge_runtime.vk.physical import (
    PhysicalDevice,
    enumerate_physical,
)
from kernelforge_runtime.vk.pipeline import Pipeline
from kernelforge_runtime.vk.pipeline_cache import PipelineCache
from kernelforge_runtime.vk.pipelines import Pipelines
from kernelforge_runtime.vk.staging import Staging

log = logging.getLogger(__name__)

_PREFERENCE = {"discrete": 0, "integrated": 1, "virtual": 2, "other": 3, "cpu": 4}
VALIDATION_VARIABLE = "KERNELFORGE_VALIDATION"
DEVICE_VARIABLE = "KERNELFORGE_DEVICE"
VALIDATION_MESSAGES: list[str] = []
"""What the validation layer said to any device of this process, for tests to look at."""


class Device(LogicalDevice):
    """An open Vulkan device. Use it as a context manager, or close it.

    It makes buffers and pipelines, and releases whatever was made on it.
    """

    def __init__(
        self, instance: Instance, physical: PhysicalDevice, memory: int | None = None
    ) -> None:
        super().__init__(instance, physical, memory)
        self.pipeline_cache = PipelineCache(self)
        self.pipelines = Pipelines(self, self.pipeline_cache)
        self._staging = self.staging = Staging(self)
        self._takes_host_memory = takes_host_memory(self)

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

        Plans hold what they use, see `pipelines`; others may find it closed much later.

        Args:
            module: the kernel.
            room: how many windows it can show of a buffer, see `Signature.window_room`.

        Raises:
            DeviceError: the driver refuses it, or the device lacks a feature that it needs.
            SpirvError: the module does not match its signature.
        """
        return self.pipelines.get(module, room)

    def placement(self, host_visible: bool) -> Placement:
        """Where buffers go that the host must see, or need not see."""
        return Buffer.placement(self, host_visible)

    def close(self) -> None:
        """Releases everything the device owns, then the device; a second call does nothing."""
        if self.handle is None:
            return
        ffi, lib = self.ffi, self.lib
        lib.vkDeviceWaitIdle(self.handle)
        self._staging.close()
        for _, item in reversed(list(self._owned.values())):
            item.close()
        self.pipelines.clear()
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
