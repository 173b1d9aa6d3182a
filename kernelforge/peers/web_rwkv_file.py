"""Writes a model in the layout that web-rwkv reads.

What differs from the checkpoint: everything is f16, dimensions of one are gone, low-rank matrices
lie transposed, and RWKV-6 calls `time_maa` `time_mix` and `time_faaaa` `time_first`. Source:
web-rwkv's loader, which names the tensors it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge_runtime.weights import Checkpoint

TRANSPOSED: Final = ("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")
RENAMED: Final = {"time_faaaa": "time_first", "time_maa": "time_mix"}


def write_web_rwkv(checkpoint: Checkpoint, path: Path) -> None:
    """Writes every tensor; `path` appears only when it is complete.

    Raises:
        ConvertError: the file cannot be written.
    """
    sources = {_renamed(name): name for name in checkpoint.names}
    plans = [
        TensorPlan(new, "f16", _shape(old, checkpoint.shape(old))) for new, old in sources.items()
    ]

    def pieces(new: str) -> Iterator[NDArray[Any]]:
        old = sources[new]
        tensor = checkpoint[old]
        yield np.ascontiguousarray(_laid_out(old, tensor), np.float16)

    write_safetensors(path, plans, pieces)


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _laid_out(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    tensor = tensor.reshape(_squeezed(tensor.shape))
    return tensor.swapaxes(-1, -2) if name.endswith(TRANSPOSED) else tensor


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    squeezed = _squeezed(shape)
    if name.endswith(TRANSPOSED):
        return (*squeezed[:-2], squeezed[-1], squeezed[-2])
    return squeezed


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
