"""A model on a Vulkan device: weights uploaded once, steps recorded once per size and replayed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.device_choice import MOST_PENALTIES, Choice
from kernelforge_runtime.models.formats import activation_format, formats_of
from kernelforge_runtime.models.inputs import Rows, check_batch, check_inputs, state_or_new
from kernelforge_runtime.models.int8_dot import Int8Report
from kernelforge_runtime.models.loading import OnLoad, load_weights
from kernelforge_runtime.models.observed import ObservedStep
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.preflight import Preflight
from kernelforge_runtime.models.recorded import Step
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.models.step_size import BUCKETS, check_chunk, share
from kernelforge_runtime.models.submitted import SubmittedSteps
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.models.tuned_state import read_state_file, read_tuned_state
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.observation import Observer
from kernelforge_runtime.ops.step_buffers import StepBuffers
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Device
from kernelforge_runtime.weights import Checkpoint


class Model(SubmittedSteps):
    """A loaded model. Use it as a context manager, or close it.

    Attributes:
        config: sizes of the model.
        device: where it runs.
        kernels: the bundles its kernels come from.
        weights: the weight format where `formats` names no other.
        formats: of every part of the model.
        activations: type of the residual stream.
        slots: sequences that one step can advance.
        hash: of the model file and its adapters; see model_hash.
        needs: memory that was reckoned before loading.
        loaded: what came of loading, and how long it took.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        kernels: KernelSet,
        weights: str | None = None,
        activations: str = "f32",
        slots: int = 1,
        progress: OnLoad | None = None,
        quant: str | None = None,
        chunk: int = max(BUCKETS),
        hooks: bool = False,
        prefix_cache: int = 0,
    ) -> None:
        self._file = recognise(checkpoint)
        self.config: ModelConfig = self._file.read_config(checkpoint)
        self.device, self.kernels = device, kernels
        self.formats = formats_of(self.config, weights, quant, file=checkpoint)
        self.weights = self.formats.usual
        self.activations = activation_format(activations, self.config)
        how = device, kernels, self.activations
        kept = {"prefix cache": prefix_cache} if prefix_cache else {}
        self._preflight = Preflight(
            self._file, checkpoint, self.config, *how, slots, chunk, hooks, kept
        )
        self.needs = self._preflight.require(self.formats)
        self._ops = VulkanOps(device, kernels, self.formats, self.activations)
        self._ops.store.layouts_of = self._preflight.layouts_of
        self._ops.store.arena.planned = list(self.needs.blocks)
        self._steps: dict[tuple[StepSize, Output], Step] = {}
        self._observed, self._flights = {}, []
        self._buffers: StepBuffers | None = None
        self.wait_ns = 0
        """Host time spent waiting for the device so far."""
        self.owns_device = False
        """Whether closing the model closes the device too."""
        self.int8: Int8Report | None = None
        """What came of int8 dot products, where they were asked for."""
        try:
            with self._preflight.explaining(self.needs):
                self.loaded = load_weights(
                    self._file, self._ops, checkpoint, self.config, self._preflight.first, progress
                )
                self._weights, self.hash = self.loaded.weights, self.loaded.hash
                self._weight_bytes = self._ops.store.arena.nbytes
                self._tuned = read_tuned_state(checkpoint, self.config)
                made = self.config, self._ops.state, slots, self.hash
                self._resident = ResidentStates(device, *made)
                self._resident.settle = self._settle
                self._buffers = StepBuffers(device, slots, MOST_PENALTIES)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """Sequences that one step can advance."""
        return self._resident.slots

    # State

    def new_state(self) -> State:
        """The state before the first token: zeros, or what the file was tuned to."""
        state = State.zero(self.config.version, self.config.states)
        state.model = self.hash
        if self._tuned is not None:
            state.arrays["wkv"][...] = self._tuned
        return state

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Reads a state file of this model, or a tuned initial state; see read_state_file."""
        return read_state_file(path, self.config, self.hash)

    def release(self, state: State) -> None:
        """Brings a state back to the host, so that it occupies no slot."""
        self._resident.release(state)

    # Steps

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
        """Runs tokens through the model, in chunks.

        Args:
            tokens: ids, at least one.
            state: updated in place and returned; None starts anew. `clone` it first to keep it.
            full_output: logits of every token, [T, V], instead of the last one's, [V].
            chunk: tokens per step at most, 1 to 256; where None what memory was reckoned for.
            vectors: in place of tokens, [T, C]: what stands for rows of the embedding table as it
                is in the file, so before `ln0`, which is applied to them.
            hidden: is shown the residual stream behind layers; see Hidden and Magnitudes.

        Raises:
            ModelError: a token is not in the vocabulary, there is none, a vector is not finite, the
                observer wants what is not there, or no step has so many tokens.
        """
        given = check_inputs(tokens, vectors, self.config, self.activations)
        state = state_or_new(state, self.new_state)
        if hidden is not None:
            hidden.begin(self.config.layers, self.config.version)
        size = self.needs.chunk if chunk is None else check_chunk(chunk)
        output: Output = "full" if full_output else "last"
        pieces = []
        step: Step | ObservedStep
        for piece in given.pieces(size):
            if hidden is not None:
                step = self._advance_observed(piece, state, output, hidden)
            else:
                step = self._advance([piece.ids], [state], output, piece.rows)
            if full_output:
                pieces.append(self._logits(step, len(piece)))
        if full_output:
            return np.concatenate(pieces), state
        return self._logits(step, 1)[0], state

    def forward_batch(
        self,
        tokens: Sequence[Sequence[int]],
        states: Sequence[State | None] | None = None,
        chunk: int | None = None,
    ) -> tuple[NDArray[np.float32], list[State]]:
        """Runs several sequences of unlike length together, `slots` of them at a time.

        Args:
            tokens: ids of each sequence, at least one each.
            states: one each, updated in place; None starts anew.
            chunk: as of `forward`, of all sequences together.

        Returns:
            Logits of every sequence's last token, [B, V], and the states.

        Raises:
            ModelError: a token is not in the vocabulary, a sequence is empty, or a state is given
                twice or is another model's. None was run.
        """
        ids, kept = check_batch(tokens, states, self.config, self.hash, self.new_state)
        logits = np.empty((len(ids), self.config.vocab), np.float32)
        size = self.needs.chunk if chunk is None else check_chunk(chunk)
        for first in range(0, len(ids), self.slots):
            group = range(first, min(first + self.slots, len(ids)))
            done = dict.fromkeys(group, 0)
            while done:
                parts = share(size, {i: len(ids[i]) - n for i, n in done.items()})
                pieces = [ids[i][done[i] : done[i] + n] for i, n in parts.items()]
                step = self._advance(pieces, [kept[i] for i in parts], "last")
                rows = self._logits(step, len(parts))
                for row, (i, count) in enumerate(parts.items()):
                    done[i] += count
                    if done[i] == len(ids[i]):
                        logits[i] = rows[row]
                        del done[i]
        return logits, kept

    def advance(
        self,
        pieces: Sequence[NDArray[np.uint32]],
        states: Sequence[State],
        outputs: int,
        rows: Rows = None,
    ) -> NDArray[np.float32]:
        """One step, for who packs steps: a piece of every sequence, checked ids, at least one each.

        Args:
            pieces: of at most `slots` sequences, 256 tokens together.
            states: of this model, one each, none twice; updated in place.
            outputs: logits are read back for the last tokens of so many sequences, the first ones.
            rows: the vectors that stand among the pieces, in their order; see Inputs.

        Returns:
            Logits [outputs, V].
        """
        return self._logits(self._advance(pieces, states, "last", rows), outputs)

    def choose(
        self,
        pieces: Sequence[NDArray[np.uint32]],
        states: Sequence[State],
        choices: Sequence[Choice | None],
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32] | None]:
        """As `advance`, and the device chooses: (tokens of the first sequences, their logits).

        Logits [len(choices), V] are read back only where one is None: its row is untouched.
        """
        flight = self.launch(pieces, states, "choice", len(choices))
        self.decide(flight, choices)
        logits = self.logits_of(flight) if None in choices else None
        tokens = self.tokens_of(flight)
        assert tokens is not None
        return tokens, logits

    def greedy(self, token: int, state: State) -> int:
        """Runs one token; the id of the largest logit, chosen on the device."""
        if not 0 <= token < self.config.vocab:  # a NumPy check costs more than the step's Python
            check_tokens([token], self.config.vocab)
        size = self._place([(token,)], [state])
        self._submit(self._step(size, "greedy").plan)
        state.position += 1
        assert self._buffers is not None
        return int(self._buffers.chosen(0)[0])

    # What tools ask

    def use(self, kernels: KernelSet) -> None:
        """Runs with these kernels from here on; they must take the weights as they lie."""
        self._park()
        self._forget_steps()
        self.kernels = self._ops.kernels = kernels

    @property
    def weight_bytes(self) -> int:
        """Device memory of the weights, in bytes."""
        return self._weight_bytes

    def close(self) -> None:
        """Releases plans, weights and state memory; resident states are read back first."""
        if hasattr(self, "_resident"):
            self._resident.move_out()
        self._flights.clear()
        self._forget_steps()
        self._ops.close()
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        if self.owns_device:
            self.device.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
