"""Command buffers: recorded once, submitted as often as wanted, waited for with a time limit."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from kernelforge_runtime.errors import DeviceError, DeviceLostError
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.loader import check
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.pipeline import Pipeline
from kernelforge_runtime.vk.timestamps import TimestampPool

_COMPUTE, _TRANSFER, _HOST = 0x800, 0x1000, 0x4000
_SHADER_READ, _SHADER_WRITE, _TRANSFER_READ, _TRANSFER_WRITE = 0x20, 0x40, 0x800, 0x1000
_HOST_READ, _HOST_WRITE = 0x2000, 0x4000
_LOST = -4  # VK_ERROR_DEVICE_LOST


class CommandBuffer:
    """One VkCommandBuffer with its fence.

    The submit and wait calls build their arguments once, here: what is left per submit is two
    calls into the driver.
    """

    def __init__(self, device: LogicalDevice, name: str = "") -> None:
        self.device, self.name = device, name
        ffi, lib = device.ffi, device.lib
        info = ffi.new(
            "VkCommandBufferAllocateInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                "commandPool": device.command_pool,
                "level": 0,
                "commandBufferCount": 1,
            },
        )
        self._handles = ffi.new("VkCommandBuffer[1]")
        check(
            lib.vkAllocateCommandBuffers(device.handle, info, self._handles),
            f"allocating command buffer {name!r}",
        )
        self.handle: Any = self._handles[0]
        fence = ffi.new("VkFenceCreateInfo*")
        fence.sType = lib.VK_STRUCTURE_TYPE_FENCE_CREATE_INFO
        self._fences = ffi.new("VkFence[1]")
        check(lib.vkCreateFence(device.handle, fence, ffi.NULL, self._fences), "creating a fence")
        self._submit = ffi.new(
            "VkSubmitInfo*",
            {
                "sType": lib.VK_STRUCTURE_TYPE_SUBMIT_INFO,
                "commandBufferCount": 1,
                "pCommandBuffers": self._handles,
            },
        )
        self._barrier = ffi.new("VkMemoryBarrier*")
        self._barrier.sType = lib.VK_STRUCTURE_TYPE_MEMORY_BARRIER
        self._pending = False
        device.track("command buffer", self)

    def begin(self) -> None:
        """Starts recording."""
        ffi, lib = self.device.ffi, self.device.lib
        info = ffi.new("VkCommandBufferBeginInfo*")
        info.sType = lib.VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO
        check(lib.vkBeginCommandBuffer(self.handle, info), f"recording {self.name!r}")

    def end(self) -> None:
        """Ends recording; makes all writes visible to the host."""
        self._memory_barrier(
            _COMPUTE | _TRANSFER, _SHADER_WRITE | _TRANSFER_WRITE, _HOST, _HOST_READ | _HOST_WRITE
        )
        check(self.device.lib.vkEndCommandBuffer(self.handle), f"recording {self.name!r}")

    def barrier(self) -> None:
        """Later dispatches and copies see what earlier ones wrote."""
        everything = _SHADER_READ | _SHADER_WRITE | _TRANSFER_READ | _TRANSFER_WRITE
        self._memory_barrier(
            _COMPUTE | _TRANSFER,
            _SHADER_WRITE | _TRANSFER_WRITE,
            _COMPUTE | _TRANSFER,
            everything,
        )

    def _memory_barrier(self, from_stage: int, wrote: int, to_stage: int, uses: int) -> None:
        null = self.device.ffi.NULL
        self._barrier.srcAccessMask, self._barrier.dstAccessMask = wrote, uses
        self.device.lib.vkCmdPipelineBarrier(
            self.handle, from_stage, to_stage, 0, 1, self._barrier, 0, null, 0, null
        )

    def dispatch(
        self, pipeline: Pipeline, descriptors: Sequence[Any], push: bytes, counts: Sequence[int]
    ) -> None:
        """Records one kernel call: descriptor sets, push constants, workgroup counts."""
        ffi, lib = self.device.ffi, self.device.lib
        lib.vkCmdBindPipeline(self.handle, 1, pipeline.handle)
        if descriptors:
            sets, count = ffi.new("VkDescriptorSet[]", list(descriptors)), len(descriptors)
            lib.vkCmdBindDescriptorSets(
                self.handle, 1, pipeline.layout, 0, count, sets, 0, ffi.NULL
            )
        if push:
            lib.vkCmdPushConstants(
                self.handle, pipeline.layout, 0x20, 0, len(push), ffi.from_buffer(push)
            )
        lib.vkCmdDispatch(self.handle, *counts)

    def copy(self, source: Buffer, start: int, target: Buffer, offset: int, nbytes: int) -> None:
        """Records a copy between two buffers; offsets and size in bytes."""
        region = self.device.ffi.new(
            "VkBufferCopy*", {"srcOffset": start, "dstOffset": offset, "size": nbytes}
        )
        self.device.lib.vkCmdCopyBuffer(self.handle, source.handle, target.handle, 1, region)

    def fill(self, target: Buffer, word: int, offset: int = 0, nbytes: int = 0) -> None:
        """Records filling with a 32-bit word; all of the buffer where `nbytes` is 0."""
        size = nbytes or target.nbytes
        self.device.lib.vkCmdFillBuffer(self.handle, target.handle, offset, size, word)

    def timestamp(self, pool: TimestampPool, index: int) -> None:
        """Records the time at which all earlier work is done."""
        self.device.lib.vkCmdWriteTimestamp(self.handle, 0x2000, pool.handle, index)

    def reset_timestamps(self, pool: TimestampPool) -> None:
        """Records clearing a timestamp pool; must come before its first timestamp."""
        self.device.lib.vkCmdResetQueryPool(self.handle, pool.handle, 0, pool.count)

    def submit(self) -> None:
        """Hands the recorded work to the device; it may be submitted again once waited for."""
        device = self.device
        if self._pending:
            raise DeviceError(f"submitting {self.name!r}: it is still running; wait for it first")
        if device.lost:
            raise DeviceLostError(
                f"submitting {self.name!r}: {device.info.name} was lost before ({device.lost}); "
                "close it and open it again"
            )
        result = device.lib.vkQueueSubmit(device.queue, 1, self._submit, self._fences[0])
        if result:
            self._failed(result, f"submitting {self.name!r} to {device.info.name}")
        self._pending = True

    def wait(self, timeout_s: float) -> None:
        """Waits for the last submit; returns at once where it has been waited for.

        Raises:
            DeviceLostError: the device was lost, or did not finish in time.
        """
        device = self.device
        if not self._pending:
            return
        result = device.lib.vkWaitForFences(device.handle, 1, self._fences, 1, int(timeout_s * 1e9))
        if result == 2:
            raise DeviceLostError(
                f"running {self.name!r} on {device.info.name}: not done after {timeout_s:g} s; "
                "the device hangs, or the work per submit is too large"
            )
        if result:
            self._failed(result, f"running {self.name!r} on {device.info.name}")
        device.lib.vkResetFences(device.handle, 1, self._fences)
        self._pending = False

    def _failed(self, result: int, doing: str) -> None:
        if result == _LOST:
            self.device.lost = doing
        check(result, doing)

    def close(self) -> None:
        """Releases the command buffer; a second call does nothing."""
        if self.handle is None:
            return
        device = self.device
        if self._pending:
            device.lib.vkDeviceWaitIdle(device.handle)
        device.lib.vkDestroyFence(device.handle, self._fences[0], device.ffi.NULL)
        device.lib.vkFreeCommandBuffers(device.handle, device.command_pool, 1, self._handles)
        self.handle = None
        device.untrack("command buffer", self)

    def __enter__(self) -> CommandBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
