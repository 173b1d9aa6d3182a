"""Finds the model file that recognises a checkpoint."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import kernelforge_runtime.models as package
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelFile
from kernelforge_runtime.weights import Checkpoint

PREFIXES = ("rwkv", "rosa")


@cache
def model_files() -> dict[str, ModelFile]:
    """Every `rwkv*.py` and `rosa*.py` of this folder by name; each holds a ModelFile, MODEL."""
    names = sorted(
        m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith(PREFIXES)
    )
    return {n: importlib.import_module(f"{package.__name__}.{n}").MODEL for n in names}


def recognise(checkpoint: Checkpoint) -> ModelFile:
    """The model file for a checkpoint: of those whose marks it holds, the one with the most.

    Raises:
        ModelError: no version has these tensors, or two do that do not build on each other.
    """
    found = {
        name: file
        for name, file in model_files().items()
        if all(mark in checkpoint for mark in file.marks)
    }
    most = max((len(file.marks) for file in found.values()), default=0)
    best = {name: file for name, file in found.items() if len(file.marks) == most}
    if len(best) == 1:
        return next(iter(best.values()))
    if best:
        raise ModelError(
            f"{checkpoint.path}: fits several versions at once ({', '.join(best)}): it holds "
            f"{', '.join(mark for file in best.values() for mark in file.marks)}"
        )
    names = ", ".join(checkpoint.names[:3])
    raise ModelError(
        f"{checkpoint.path}: not an RWKV model of a known version ({', '.join(model_files())}); "
        f"it holds {len(checkpoint)} tensors such as {names}"
    )
