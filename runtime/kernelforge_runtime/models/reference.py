"""A model run by NumPy: the oracle, and the way to run where there is no Vulkan device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.formats import activation_format, formats_of
from kernelforge_runtime.models.inputs import (
    Inputs,
    Rows,
    check_batch,
    check_inputs,
    state_or_new,
    taken,
)
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.step_size import BUCKETS, check_chunk
from kernelforge_runtime.models.tuned_state import read_state_file, read_tuned_state
from kernelforge_runtime.ops import NumpyOps
from kernelforge_runtime.ops.observation import Mark, Observer, Place, places
from kernelforge_runtime.state import State
from kernelforge_runtime.weights import Checkpoint
from kernelforge_runtime.weights.adapters import Adapter, open_model
from kernelforge_runtime.weights.model_hash import model_hash


class Reference:
    """The same `forward` as a Model's, in NumPy.

    Attributes:
        config: sizes of the model.
        weights: the format that weights were rounded to where `formats` names no other.
        formats: of every part of the model.
        chunk: tokens computed at once; bounds the memory of a long prompt, not its result.
        hash: of the model file and its adapters; see model_hash.
    """

    device = None
    slots = 256
    """Sequences that `advance` takes; they run one after the other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: DTypeLike = np.float32,
        weights: str | None = None,
        activations: str = "f32",
        threads: int | None = None,
        quant: str | None = None,
        chunk: int = max(BUCKETS),
    ) -> None:
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise ModelError(f"NumPy computes in float32 or float64, asked for {np.dtype(dtype)}")
        self.chunk = check_chunk(chunk)
        self._file = recognise(checkpoint)
        self.config: ModelConfig = self._file.read_config(checkpoint)
        self.formats = formats_of(self.config, weights, quant, "f32", checkpoint)
        self.weights = self.formats.usual
        self.activations = activation_format(activations, self.config)
        self._ops = NumpyOps(dtype, self.formats, self.activations, threads)
        self._weights = self._file.load(self._ops, checkpoint, self.config)
        self._tuned = read_tuned_state(checkpoint, self.config)
        self.hash = model_hash(checkpoint)
        self._takes_vectors = False

    def new_state(self) -> State:
        """The state before the first token: zeros, or what the file was tuned to."""
        state = State.zero(self.config.version, self.config.states, self._ops.dtype)
        state.model = self.hash
        if self._tuned is not None:
            state.arrays["wkv"][...] = self._tuned
        return state

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Reads a state file of this model, or a tuned initial state; see read_state_file."""
        return read_state_file(path, self.config, self.hash)

    def release(self, state: State) -> None:
        """Nothing to do: states are on the host."""

    def forward(
        self,
        tokens: Sequence[int] = (),
        state: State | None = None,
        full_output: bool = False,
        chunk: int | None = None,
        *,
        vectors: NDArray[Any] | None = None,
        hidden: Observer | None = None,
    ) -> tuple[NDArray[np.float32], State]:
        """Runs tokens through the model.

        Args:
            tokens: ids, at least one.
            state: updated in place and returned; None starts anew.
            full_output: logits of every token, [T, V], instead of the last one's, [V].
            chunk: tokens computed at once, 1 to 256; the model's own where None.
            vectors: in place of tokens; see Model.forward.
            hidden: is shown the residual stream behind layers; see Hidden and Magnitudes.

        Raises:
            ModelError: a token is not in the vocabulary, there is none, a vector is not finite, the
                observer wants what is not there, or it is no such chunk.
        """
        given = check_inputs(tokens, vectors, self.config, self.activations)
        if chunk is not None:
            check_chunk(chunk)
        return self._run(given, state, full_output, hidden, chunk)

    def _run(
        self,
        given: Inputs,
        state: State | None,
        full_output: bool = False,
        hidden: Observer | None = None,
        chunk: int | None = None,
    ) -> tuple[NDArray[np.float32], State]:
        if hidden is not None:
            hidden.begin(self.config.layers, self.config.version)
        state = state_or_new(state, self.new_state)
        state.check(self.config.version, self.config.states, self.hash)
        state.move_out()  # of a device's model that may hold it
        outputs: list[NDArray[np.float32]] = []
        for piece in given.pieces(chunk or self.chunk):
            state.reserve(self.config.states, len(piece))
            self._ops.tokens, self._ops.state = piece.ids, state.arrays
            self._ops.position = state.position
            logits, seen = self._step(piece, full_output, hidden is not None)
            state.position += len(piece)
            for place, mark in seen:  # once the state is whole: the observer may fail
                if hidden is not None and hidden.wants(place):
                    hidden.see(place, np.array(mark.x * mark.scale, np.float32))
            if not full_output:  # a long prompt's last one is all that is asked for
                outputs.clear()
            outputs.append(logits[:, : self.config.vocab])
        if full_output:
            return np.concatenate(outputs).astype(np.float32), state
        return outputs[-1][-1].astype(np.float32), state

    def require_vectors(self) -> None:
        """Raises ModelError where this version reads more of a token than its embedding."""
        if not self._takes_vectors:
            self.forward(vectors=np.zeros((1, self.config.width), np.float32))
        self._takes_vectors = True

    def _step(
        self, piece: Inputs, full_output: bool, looked: bool
    ) -> tuple[NDArray[Any], list[tuple[Place, Mark]]]:
        """One step over the op set's tokens and vectors: its logits, and what can be seen."""
        ops = self._ops
        ops.given, ops.marks = piece.rows, [] if looked else None
        try:
            logits: NDArray[Any] = self._file.step(ops, self._weights, full_output)
            marks = ops.marks or []
        finally:
            ops.given = ops.marks = None
        return logits, list(zip(places(marks), marks, strict=True))

    def forward_batch(
        self, tokens: Sequence[Sequence[int]], states: Sequence[State | None] | None = None
    ) -> tuple[NDArray[np.float32], list[State]]:
        """Runs several sequences of unlike length, one after the other: (logits [B, V], states).

        Raises:
            ModelError: as by Model.forward_batch.
        """
        ids, kept = check_batch(tokens, states, self.config, self.hash, self.new_state)
        return self.advance(ids, kept, len(ids)), kept

    def advance(
        self,
        pieces: Sequence[NDArray[np.uint32]],
        states: Sequence[State],
        outputs: int,
        rows: Rows = None,
    ) -> NDArray[np.float32]:
        """A piece of every sequence; logits [outputs, V] of the first ones' last tokens.

        Args:
            pieces: checked ids.
            states: one each.
            outputs: whose logits are wanted.
            rows: the vectors that stand among the pieces, in their order; see Inputs.
        """
        found = []
        for piece, state in zip(pieces, states, strict=True):
            own, rows = taken(piece, rows)
            found.append(self._run(Inputs(piece, own), state)[0])
        return np.array(found[:outputs], np.float32).reshape(outputs, self.config.vocab)

    def greedy(self, token: int, state: State) -> int:
        """Runs one token; the id of the largest logit."""
        logits, _ = self.forward([token], state)
        return int(np.argmax(logits))

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return self._ops.weight_bytes

    def close(self) -> None:
        """Ends the threads; weights go with the object."""
        self._ops.workers.close()

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_reference(
    path: str | os.PathLike[str],
    dtype: DTypeLike = np.float32,
    weights: str | None = None,
    activations: str = "f32",
    threads: int | None = None,
    quant: str | None = None,
    adapters: Iterable[Adapter | str | os.PathLike[str]] = (),
    chunk: int = max(BUCKETS),
) -> Reference:
    """Loads a model to be run by NumPy.

    Args:
        path: a .pth or .safetensors checkpoint.
        dtype: what is computed in: float32, or float64 as an oracle.
        weights: format that the weights are rounded to first: "f32", "f16" or "bf16"; or "q8" or
            "nf4", in which matrices are kept in memory. Where None f32, and a converted file's own.
        activations: "f16" rounds the residual stream and the inputs of products to float16.
        threads: for products with quantised matrices; as many as there are cores where None.
        quant: formats of parts of the model, such as "0-11:q8,head:f16"; see `weight_formats`.
        adapters: as for load_model.
        chunk: tokens computed at once, 1 to 256; a longer prompt goes in pieces.

    Raises:
        ModelError: the file cannot be read or is no model of a known version.
    """
    with open_model(path, adapters) as checkpoint:
        return Reference(checkpoint, dtype, weights, activations, threads, quant, chunk)
