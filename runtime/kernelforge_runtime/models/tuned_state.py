"""Tuned initial states: `blocks.i.att.time_state`, in a model's file or in one of their own.

Files store them [value][key] for every version, as the states of this runtime are laid out.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.state import State
from kernelforge_runtime.weights import Checkpoint, open_checkpoint

SUFFIX = ".att.time_state"


def read_tuned_state(checkpoint: Checkpoint, config: ModelConfig) -> NDArray[np.float32] | None:
    """What the state `wkv` starts from, float32 [L, H, N, N]; None where the file does not say.

    Raises:
        ModelError: the model has no such state, a layer's is missing, of another shape, or holds
            NaN or infinity.
    """
    held = [name for name in checkpoint if name.endswith(SUFFIX)]
    if not held:
        return None
    spec = config.states.get("wkv")
    if spec is None or len(spec.shape) != 3:
        raise ModelError(
            f"{checkpoint.path}: holds {held[0]}, but {config.version} has no such state"
        )
    names = [f"blocks.{layer}{SUFFIX}" for layer in range(spec.entries)]
    for name in names:
        if name not in checkpoint:
            raise ModelError(
                f"{checkpoint.path}: {name} is missing: a tuned state has one for each of the "
                f"model's {spec.entries} layers, this one holds {len(held)}"
            )
    if more := sorted(set(held) - set(names)):
        raise ModelError(
            f"{checkpoint.path}: {more[0]} is no layer of this model, which has {spec.entries}"
        )
    return np.stack([_read_layer(checkpoint, name, spec.shape) for name in names])


def read_state_file(
    path: str | os.PathLike[str], config: ModelConfig, model: str | None = None
) -> State:
    """A saved state, or a tuned initial state in a `.pth` or `.safetensors` file of its own.

    A tuned state replaces `wkv`; everything else starts at zero, at position 0. Its file does not
    say which model it was made for.

    Args:
        path: of the file.
        config: of the model that is to go on from it.
        model: its hash; a saved state of another one is refused.

    Raises:
        ModelError: the file cannot be read, is damaged, holds something else, or is another
            model's.
    """
    try:
        opened = open_checkpoint(path)
    except ModelError as error:
        raise ModelError(f"state {error}") from None
    with opened as checkpoint:
        if _is_saved(checkpoint):
            return State.load(path, config.version, config.states, model)
        others = [name for name in checkpoint if not name.endswith(SUFFIX)]
        if others:
            raise ModelError(
                f"state {path}: holds {others[0]}: expected a saved state, or a tuned one of "
                f"nothing but blocks.0{SUFFIX} and so on"
            )
        try:
            tuned = read_tuned_state(checkpoint, config)
        except ModelError as error:
            raise ModelError(f"state {error}") from None
    state = State.zero(config.version, config.states)
    state.model = model
    state.arrays["wkv"][...] = tuned
    return state


def _is_saved(checkpoint: Checkpoint) -> bool:
    """Whether the file is one that `State.save` writes, or at least none of a trainer's."""
    return checkpoint.kind == "safetensors" and not any("." in name for name in checkpoint)


def _read_layer(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    found = checkpoint.shape(name)
    if found != shape:
        raise ModelError(
            f"{checkpoint.path}: {name} has shape {list(found)}, this model's heads need "
            f"{list(shape)}"
        )
    values = checkpoint.tensor(name)
    if not np.isfinite(values).all():
        raise ModelError(f"{checkpoint.path}: {name} holds NaN or infinity")
    return values
