"""A model run by NumPy: the oracle, and the way to run where there is no Vulkan device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.formats import weight_format
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.ops import NumpyOps
from kernelforge_runtime.state import State
from kernelforge_runtime.weights import Checkpoint, open_checkpoint

CHUNK = 256
"""Tokens computed at once; bounds the memory of a long prompt, not its result."""


class Reference:
    """The same `forward` as a Model's, in NumPy.

    Attributes:
        config: sizes of the model.
        weights: the format that weights were rounded to.
    """

    device = None

    def __init__(
        self, checkpoint: Checkpoint, dtype: DTypeLike = np.float32, weights: DType = F32
    ) -> None:
        self._file = recognise(checkpoint)
        self.config: ModelConfig = self._file.read_config(checkpoint)
        self.weights = weights
        self._ops = NumpyOps(dtype, weights)
        self._weights = self._file.load(self._ops, checkpoint, self.config)

    def new_state(self) -> State:
        """The state before the first token."""
        return State.zero(self.config.version, self.config.state_shapes, self._ops.dtype)

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Reads a state file of this model; see State.load."""
        return State.load(path, self.config.version, self.config.state_shapes)

    def forward(
        self, tokens: Sequence[int], state: State | None = None, full_output: bool = False
    ) -> tuple[NDArray[np.float32], State]:
        """Runs tokens through the model.

        Args:
            tokens: ids, at least one.
            state: updated in place and returned; None starts anew.
            full_output: logits of every token, [T, V], instead of the last one's, [V].

        Raises:
            ModelError: a token is not in the vocabulary, or there is none.
        """
        ids = check_tokens(tokens, self.config.vocab)
        state = state if state is not None else self.new_state()
        state.check(self.config.version, self.config.state_shapes)
        arrays: Mapping[str, NDArray[np.generic]] = state.arrays
        outputs = []
        for start in range(0, len(ids), CHUNK):
            self._ops.tokens, self._ops.state = ids[start : start + CHUNK], arrays
            logits = self._file.step(self._ops, self._weights, full_output)
            outputs.append(logits[:, : self.config.vocab])
        if full_output:
            return np.concatenate(outputs).astype(np.float32), state
        return outputs[-1][-1].astype(np.float32), state

    def greedy(self, token: int, state: State) -> int:
        """Runs one token; the id of the largest logit."""
        logits, _ = self.forward([token], state)
        return int(np.argmax(logits))

    def close(self) -> None:
        """Nothing to release; here so that a Reference can stand where a Model does."""

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_reference(
    path: str | os.PathLike[str], dtype: DTypeLike = np.float32, weights: str = "f32"
) -> Reference:
    """Loads a model to be run by NumPy.

    Args:
        path: a .pth or .safetensors checkpoint.
        dtype: what is computed in: float32, or float64 as an oracle.
        weights: format that the weights are rounded to first: "f32", "f16" or "bf16".

    Raises:
        ModelError: the file cannot be read or is no model of a known version.
    """
    with open_checkpoint(path) as checkpoint:
        return Reference(checkpoint, dtype, weight_format(weights))
