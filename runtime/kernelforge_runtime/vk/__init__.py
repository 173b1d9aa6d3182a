"""The thin Vulkan layer: one class per Vulkan object; the only place that imports `vulkan`."""

from kernelforge_runtime.vk.buffer import Buffer, BufferSlice
from kernelforge_runtime.vk.commands import CommandBuffer
from kernelforge_runtime.vk.device import Device, list_devices, open_device
from kernelforge_runtime.vk.external import (
    ExportedBuffer,
    SharedBuffer,
    cannot_share,
    import_buffer,
    shared_buffer,
)
from kernelforge_runtime.vk.pipeline import Pipeline
from kernelforge_runtime.vk.timestamps import TimestampPool

__all__ = [
    "Buffer",
    "BufferSlice",
    "CommandBuffer",
    "Device",
    "ExportedBuffer",
    "Pipeline",
    "SharedBuffer",
    "TimestampPool",
    "cannot_share",
    "import_buffer",
    "list_devices",
    "open_device",
    "shared_buffer",
]
