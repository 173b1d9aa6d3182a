"""Copies between host and memory that the host cannot see, through one reused staging buffer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.commands import CommandBuffer
from kernelforge_runtime.vk.logical_device import LogicalDevice

STAGING_BYTES = 16 << 20
COPY_TIMEOUT_S = 60.0


class Staging:
    """A host-visible buffer of 16 MB, made at first use; longer copies go in pieces.

    One command buffer serves all copies, and stays recorded where the next copy is the same: a
    step's logits come back without anything being made.
    """

    def __init__(self, device: LogicalDevice) -> None:
        self.device = device
        self._buffer: Buffer | None = None
        self._commands: CommandBuffer | None = None
        self._recorded: tuple[Buffer, int, Buffer, int, int] | None = None

    def _memory(self) -> tuple[Buffer, NDArray[np.uint8]]:
        if self._buffer is None:
            self._buffer = Buffer(self.device, STAGING_BYTES, "staging", host_visible=True)
        return self._buffer, self._buffer.view(np.uint8)

    def _copy(self, source: Buffer, start: int, target: Buffer, offset: int, nbytes: int) -> None:
        if self._commands is None:
            self._commands = CommandBuffer(self.device, "staging")
        commands, wanted = self._commands, (source, start, target, offset, nbytes)
        commands.wait(COPY_TIMEOUT_S)  # at once, but where the last wait was broken off
        if self._recorded != wanted:  # by the buffers themselves: handles are used again
            self._recorded = None
            commands.name = f"copy of {nbytes} bytes from buffer {source.name!r} to {target.name!r}"
            commands.begin()
            commands.copy(source, start, target, offset, nbytes)
            commands.end()
            self._recorded = wanted
        commands.submit()
        commands.wait(COPY_TIMEOUT_S)

    def upload(self, target: Buffer, raw: NDArray[np.uint8], offset: int) -> None:
        """Copies bytes into `target` from byte `offset`."""
        staging, memory = self._memory()
        for start in range(0, raw.nbytes, STAGING_BYTES):
            piece = raw[start : start + STAGING_BYTES]
            memory[: piece.nbytes] = piece
            self._copy(staging, 0, target, offset + start, piece.nbytes)

    def download(self, source: Buffer, nbytes: int, offset: int) -> NDArray[np.uint8]:
        """Copies `nbytes` bytes out of `source` from byte `offset`."""
        staging, memory = self._memory()
        out = np.empty(nbytes, dtype=np.uint8)
        for start in range(0, nbytes, STAGING_BYTES):
            size = min(STAGING_BYTES, nbytes - start)
            self._copy(source, offset + start, staging, 0, size)
            out[start : start + size] = memory[:size]
        return out

    def fill(self, target: Buffer, word: int) -> None:
        """Fills a buffer with a 32-bit word."""
        with CommandBuffer(self.device, f"fill of buffer {target.name!r}") as commands:
            commands.begin()
            commands.fill(target, word)
            commands.end()
            commands.submit()
            commands.wait(COPY_TIMEOUT_S)

    def close(self) -> None:
        """Releases the staging buffer."""
        if self._commands is not None:
            self._commands.close()
        if self._buffer is not None:
            self._buffer.close()
        self._buffer = self._commands = self._recorded = None
