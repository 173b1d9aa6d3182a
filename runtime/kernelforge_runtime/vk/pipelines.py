"""The pipelines of a device: each made once, kept while plans use it and for some time longer.

Without a bound a process that measures some thousand kernels would keep the code of them all, a
megabyte and more of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any, Final

from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.vk.logical_device import LogicalDevice
from kernelforge_runtime.vk.pipeline import Pipeline
from kernelforge_runtime.vk.pipeline_cache import PipelineCache

MOST_IDLE: Final = 128
"""Kept though no plan uses them: what the largest step of a model takes, some times over. With
cooperative matrices one has five megabytes in Mesa 26's llvmpipe."""
Key = tuple[str, Any, int]


class Pipelines:
    """Those of one device, from the one used least lately to the latest."""

    def __init__(self, device: LogicalDevice, cache: PipelineCache) -> None:
        self._device, self._cache, self._lock = device, cache, Lock()
        self._made: dict[Key, Pipeline] = {}
        self._users: dict[Pipeline, int] = {}

    def get(self, module: ShaderModule, room: int = 0) -> Pipeline:
        """The pipeline of a module; see Device.pipeline."""
        key = module.sha256, module.signature, room
        found = self._made.get(key)
        if found is not None and found.handle is not None:
            return found
        made = Pipeline(self._device, module, self._cache, room)  # for long: others may go on
        with self._lock:
            found = self._made.get(key)
            if found is None or found.handle is None:
                self._made[key] = made
                return made
        made.close()
        return found

    def hold(self, module: ShaderModule, room: int = 0) -> Pipeline:
        """As `get`, and it is kept until it was let go as often as it was held."""
        while True:
            found = self.get(module, room)
            with self._lock:
                if found.handle is not None:  # else let go of by another thread, just now
                    self._users[found] = self._users.get(found, 0) + 1
                    return found

    def let_go(self, held: Iterable[Pipeline]) -> None:
        """What nobody uses any more may be closed, what was used latest last."""
        with self._lock:
            idle = set()
            for pipeline in held:
                self._users[pipeline] -= 1
                if not self._users[pipeline]:
                    del self._users[pipeline]
                    idle.add(pipeline)
            for key in [key for key, made in self._made.items() if made in idle]:
                self._made[key] = self._made.pop(key)
            unused = [key for key, made in self._made.items() if made not in self._users]
            for key in unused[: max(0, len(unused) - MOST_IDLE)]:
                self._made.pop(key).close()

    def clear(self) -> None:
        """Forgets them all; the device has closed them."""
        with self._lock:
            self._made.clear()
            self._users.clear()
