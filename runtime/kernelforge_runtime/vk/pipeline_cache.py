"""The driver's pipeline cache on disk: keyed by device and driver, rewritten atomically.

It is validated before the driver sees it: a damaged blob is undefined behaviour there.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from typing import Any

from kernelforge_runtime.resources import xdg_dir
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.written_file import written_whole

log = logging.getLogger(__name__)

MAGIC = b"KFPCACH1"
_HEADER = struct.Struct("<8sQ32s")  # magic, length of the driver's blob, its SHA-256
_DRIVER_HEADER = struct.Struct("<IIII16s")  # size, version, vendor, device, pipelineCacheUUID
MAX_BYTES = 256 << 20


class PipelineCache:
    """A VkPipelineCache, filled from disk where a valid file is found."""

    def __init__(self, device: LogicalDevice) -> None:
        self.device = device
        info = device.info
        device_name = f"{info.vendor_id:04x}-{info.device_id:04x}"
        name = f"{device_name}-{info.driver_version:08x}-{info.pipeline_cache_uuid}"
        self.path = xdg_dir("XDG_CACHE_HOME", ".cache") / "pipelines" / f"{name}.bin"
        self._loaded = self._read()
        ffi, lib = device.ffi, device.lib
        create = ffi.new("VkPipelineCacheCreateInfo*")
        create.sType = lib.VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO
        create.initialDataSize = len(self._loaded)
        blob = ffi.from_buffer(self._loaded) if self._loaded else ffi.NULL
        create.pInitialData = blob
        out = ffi.new("VkPipelineCache*")
        check(
            lib.vkCreatePipelineCache(device.handle, create, ffi.NULL, out),
            "making a pipeline cache",
        )
        self.handle: Any = out[0]

    def _read(self) -> bytes:
        """The driver's blob of the file, or nothing where there is no valid one."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large")
            data = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            log.warning("pipeline cache %s ignored: %s", self.path, error)
            return b""
        problem = self._problem(data)
        if problem:
            log.warning("pipeline cache %s ignored: %s; it will be rebuilt", self.path, problem)
            return b""
        return data[_HEADER.size :]

    def _problem(self, data: bytes) -> str:
        if len(data) < _HEADER.size + _DRIVER_HEADER.size:
            return "it is too short"
        magic, length, digest = _HEADER.unpack_from(data)
        blob = data[_HEADER.size :]
        if magic != MAGIC or length != len(blob):
            return "its header is wrong"
        if hashlib.sha256(blob).digest() != digest:
            return "its checksum is wrong"
        _, version, vendor, device_id, uuid = _DRIVER_HEADER.unpack_from(blob)
        info = self.device.info
        if version != 1 or vendor != info.vendor_id or device_id != info.device_id:
            return "it belongs to another device"
        return "" if uuid.hex() == info.pipeline_cache_uuid else "it belongs to another driver"

    def save(self) -> None:
        """Writes the cache where it has grown; a disk that refuses costs a warning only."""
        device, ffi, lib = self.device, self.device.ffi, self.device.lib
        size = ffi.new("size_t*")
        if lib.vkGetPipelineCacheData(device.handle, self.handle, size, ffi.NULL):
            return
        blob = ffi.new("char[]", max(int(size[0]), 1))
        if lib.vkGetPipelineCacheData(device.handle, self.handle, size, blob):
            return
        self.write(bytes(ffi.buffer(blob, size[0])))

    def write(self, data: bytes) -> None:
        """Writes what the driver gave, unless it is what was loaded, or nothing but a header."""
        if data == self._loaded or len(data) <= _DRIVER_HEADER.size:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path, lasting=True) as file:
                file.write(_HEADER.pack(MAGIC, len(data), hashlib.sha256(data).digest()) + data)
        except OSError as error:
            log.warning("pipeline cache %s not saved: %s", self.path, error)

    def close(self) -> None:
        """Saves and releases the cache; a second call does nothing."""
        if self.handle is not None:
            self.save()
            self.device.lib.vkDestroyPipelineCache(
                self.device.handle, self.handle, self.device.ffi.NULL
            )
            self.handle = None
