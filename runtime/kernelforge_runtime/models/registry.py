"""Finds the model file that recognises a checkpoint."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import kernelforge_runtime.models as package
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelFile
from kernelforge_runtime.weights import Checkpoint

PREFIX = "rwkv"


@cache
def model_files() -> dict[str, ModelFile]:
    """Every `rwkv*.py` of this folder by name; each holds a ModelFile called MODEL."""
    names = sorted(
        m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith(PREFIX)
    )
    return {n: importlib.import_module(f"{package.__name__}.{n}").MODEL for n in names}


def recognise(checkpoint: Checkpoint) -> ModelFile:
    """The model file for a checkpoint.

    Raises:
        ModelError: no version has these tensors, or more than one does.
    """
    found = {name: file for name, file in model_files().items() if file.recognises(checkpoint)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ModelError(f"{checkpoint.path}: fits several versions at once ({', '.join(found)})")
    names = ", ".join(checkpoint.names[:3])
    raise ModelError(
        f"{checkpoint.path}: not an RWKV model of a known version ({', '.join(model_files())}); "
        f"it holds {len(checkpoint)} tensors such as {names}"
    )
