"""How far loading a model has come."""

from __future__ import annotations

import math
from collections.abc import Callable

from kernelforge_runtime.ops.device_weights import OnUpload
from kernelforge_runtime.weights import Checkpoint

OnLoad = Callable[[int, int, str], None]
"""Told how loading goes: weights on the device, weights of the file, the latest tensor's name."""


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
