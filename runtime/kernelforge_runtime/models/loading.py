"""Brings a file's weights onto a device, and tells how far it has come."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.bundle.select import Selection
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.models.base import ModelConfig, ModelFile
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.device_rounding import DeviceRounding
from kernelforge_runtime.ops.device_weights import OnUpload
from kernelforge_runtime.ops.later_work import LaterWork
from kernelforge_runtime.turns import taking_turns
from kernelforge_runtime.weights import Checkpoint
from kernelforge_runtime.weights.model_hash import model_hash

OnLoad = Callable[[int, int, str], None]
"""Told how loading goes: weights on the device, weights of the file, the latest tensor's name."""


@dataclass
class Loaded:
    """What came of loading.

    Attributes:
        weights: the model's handles.
        hash: of the model; see model_hash.
        seconds: that all of it took.
        pipeline_seconds: of threads that made pipelines meanwhile, added up.
    """

    weights: Any
    hash: str
    seconds: float
    pipeline_seconds: float


def load_weights(
    file: ModelFile,
    ops: VulkanOps,
    checkpoint: Checkpoint,
    config: ModelConfig,
    kernels: Iterable[Selection],
    progress: OnLoad | None = None,
) -> Loaded:
    """Packs and uploads everything; meanwhile makes pipelines that the first step will want.

    Args:
        file: knows the tensors.
        ops: takes them.
        checkpoint: has them.
        config: of the model.
        kernels: of the first step; one that cannot be had is left for the step to complain of.
        progress: told after each matrix and table.
    """
    begun, spent = time.perf_counter(), list[float]()
    work = ops.store.later = LaterWork()
    rounding = ops.store.rounding = DeviceRounding(ops.device, ops.kernels, work.begin)
    if progress is not None:
        ops.store.on_upload = counting(checkpoint, progress)
    try:
        with taking_turns():
            for module, room in _modules(kernels):
                work.begin(partial(_prepare, ops, module, room, spent))
            weights = file.load(ops, checkpoint, config)
            # Not before: half of it is Python, which two threads get through in more time than one.
            found = work.begin(partial(model_hash, checkpoint))
            work.run()
        rounding.run()
    finally:
        work.drop()
        ops.store.later = ops.store.rounding = None
    return Loaded(weights, found(), time.perf_counter() - begun, sum(spent))


def _modules(kernels: Iterable[Selection]) -> list[tuple[ShaderModule, int]]:
    """The modules of kernels, each once, and the windows that their pipelines have room for."""
    found = {}
    for selection in kernels:
        with contextlib.suppress(KernelForgeError):
            module = selection.module
            room = module.signature.window_room(selection.entry.problem)
            found[module.sha256, module.signature, room] = module, room
    return [*found.values()]


def _prepare(ops: VulkanOps, module: ShaderModule, room: int, spent: list[float]) -> None:
    begun = time.perf_counter()
    with contextlib.suppress(KernelForgeError):
        ops.device.pipeline(module, room)
    spent.append(time.perf_counter() - begun)


def counting(checkpoint: Checkpoint, progress: OnLoad) -> OnUpload:
    """Adds up what is uploaded; the last call need not reach the file's number of weights.

    Some tensors are made from others, vectors are not worth a call, tables may stay on the host.
    """
    total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    done = 0

    def count(name: str, weights: int) -> None:
        nonlocal done
        done = min(done + weights, total)
        progress(done, total, name)

    return count
