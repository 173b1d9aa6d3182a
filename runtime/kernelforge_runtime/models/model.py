"""A model on a Vulkan device: weights uploaded once, steps recorded once per size and replayed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.errors import ModelError, OutOfMemoryError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.device_choice import Choice, ChoiceBuffers
from kernelforge_runtime.models.formats import activation_format, formats_of
from kernelforge_runtime.models.inputs import check_inputs
from kernelforge_runtime.models.int8_dot import Int8Report
from kernelforge_runtime.models.loading import OnLoad, counting
from kernelforge_runtime.models.observed import ObservedStep, ObservedSteps
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.preflight import Preflight
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.models.step_size import BUCKETS, share, step_size
from kernelforge_runtime.models.step_writing import write_step
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.models.traced import TracedSteps
from kernelforge_runtime.models.tuned_state import read_state_file, read_tuned_state
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import Call, PlanBuilder, Temporary
from kernelforge_runtime.ops.observation import Observer
from kernelforge_runtime.ops.vulkan_step import StepBuffers, StepSize
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.plan.plan import Timing
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Buffer, Device
from kernelforge_runtime.weights import Checkpoint
from kernelforge_runtime.weights.model_hash import model_hash


@dataclass
class Step:
    """A recorded plan with the calls it was made from and the memory it works in."""

    plan: Plan
    calls: list[Call]
    work: Buffer | None
    logits: Temporary

    def close(self) -> None:
        """Releases plan and memory."""
        self.plan.close()
        if self.work is not None:
            self.work.close()


class Model(ObservedSteps, TracedSteps):
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
        needs: memory of the device that was reckoned before loading.
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
    ) -> None:
        self._file = recognise(checkpoint)
        self.config: ModelConfig = self._file.read_config(checkpoint)
        self.device, self.kernels = device, kernels
        self.formats = formats_of(self.config, weights, quant)
        self.weights = self.formats.usual
        self.activations = activation_format(activations, self.config)
        how = device, kernels, self.activations
        self._preflight = Preflight(self._file, checkpoint, self.config, *how, slots, chunk)
        self.needs = self._preflight.require(self.formats)
        self._ops = VulkanOps(device, kernels, self.formats, self.activations)
        self._ops.store.layouts_of = self._preflight.layouts_of
        self._ops.store.arena.planned = list(self.needs.blocks)
        self._steps: dict[tuple[StepSize, Output], Step] = {}
        self._observed = {}
        self._buffers: StepBuffers | None = None
        self._choices: ChoiceBuffers | None = None
        if progress is not None:
            self._ops.store.on_upload = counting(checkpoint, progress)
        self.wait_ns = 0
        """Host time spent waiting for the device so far."""
        self.owns_device = False
        """Whether closing the model closes the device too."""
        self.int8: Int8Report | None = None
        """What came of int8 dot products, where they were asked for."""
        try:
            with self._preflight.explaining(self.needs):
                self._weights = self._file.load(self._ops, checkpoint, self.config)
                self._weight_bytes = self._ops.store.arena.nbytes
                self._tuned = read_tuned_state(checkpoint, self.config)
                self.hash = model_hash(checkpoint)
                made = self.config, self._ops.state, slots, self.hash
                self._resident = ResidentStates(device, *made)
                self._buffers = StepBuffers.make(device, max(BUCKETS))
                self._token_view = self._buffers.token.view(np.uint32)
                self._owner_view = self._buffers.owner.view(np.uint32)
                self._segment_view = self._buffers.segment.view(np.uint32).reshape(-1, 4)
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
            chunk: tokens per step at most; where None what memory was reckoned for.
            vectors: in place of tokens, [T, C]: what stands for rows of the embedding table as it
                is in the file, so before `ln0`, which is applied to them.
            hidden: is shown the residual stream behind layers; see Hidden and Magnitudes.

        Raises:
            ModelError: a token is not in the vocabulary, there is none, a vector is not finite, or
                the observer wants what is not there.
        """
        given = check_inputs(tokens, vectors, self.config, self.activations)
        if hidden is not None:
            hidden.begin(self.config.layers, self.config.version)
        looked = vectors is not None or hidden is not None
        state = state if state is not None else self.new_state()
        size = max(1, min(chunk or self.needs.chunk, max(BUCKETS)))
        output: Output = "full" if full_output else "last"
        pieces = []
        step: Step | ObservedStep
        for start in range(0, len(given), size):
            piece = given.piece(start, size)
            if looked:
                step = self._advance_observed(piece, state, output, hidden)
            else:
                step = self._advance([piece.ids], [state], output)
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
                twice.
        """
        given = list(states) if states is not None else [None] * len(tokens)
        if len(given) != len(tokens):
            raise ModelError(f"{len(tokens)} sequences were given {len(given)} states")
        kept = [s if s is not None else self.new_state() for s in given]
        if len({id(s) for s in kept}) != len(kept):
            raise ModelError("a state was given for two sequences: clone it")
        ids = [check_tokens(t, self.config.vocab) for t in tokens]
        logits = np.empty((len(ids), self.config.vocab), np.float32)
        size = max(1, min(chunk or self.needs.chunk, max(BUCKETS)))
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
        self, pieces: Sequence[NDArray[np.uint32]], states: Sequence[State], outputs: int
    ) -> NDArray[np.float32]:
        """One step, for who packs steps: a piece of every sequence, checked ids, at least one each.

        Args:
            pieces: of at most `slots` sequences, 256 tokens together.
            states: of this model, one each, none twice; updated in place.
            outputs: logits are read back for the last tokens of so many sequences, the first ones.

        Returns:
            Logits [outputs, V].
        """
        step = self._advance(pieces, states, "last")
        return self._logits(step, outputs) if outputs else np.empty((0, self.config.vocab), "f4")

    def choose(
        self,
        pieces: Sequence[NDArray[np.uint32]],
        states: Sequence[State],
        choices: Sequence[Choice | None],
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32] | None]:
        """As `advance`, and the device chooses: (tokens of the first sequences, their logits).

        Logits [len(choices), V] are read back only where one is None: its row is untouched.
        """
        if self._choices is None:
            self._choices = ChoiceBuffers(self.device, self.slots)
        self._choices.tell(choices)
        step = self._advance(pieces, states, "choice")
        logits = self._logits(step, len(choices)) if None in choices else None
        return self._choices.answers(len(choices)), logits

    def greedy(self, token: int, state: State) -> int:
        """Runs one token; the id of the largest logit, chosen on the device."""
        if not 0 <= token < self.config.vocab:  # a NumPy check costs more than the step's Python
            check_tokens([token], self.config.vocab)
        size = self._place([(token,)], [state])
        self._submit(self._step(size, "greedy").plan)
        state.position += 1
        return int(self._token_view[0])  # argmax writes where the next step reads

    def _advance(
        self, pieces: Sequence[NDArray[np.uint32]], states: Sequence[State], output: Output
    ) -> Step:
        """Runs one step: a piece of every sequence."""
        size = self._place(pieces, states)
        step = self._step(size, output)
        self._submit(step.plan)
        for piece, state in zip(pieces, states, strict=True):
            state.position += len(piece)
        return step

    def _place(
        self, pieces: Sequence[Sequence[int] | NDArray[np.uint32]], states: Sequence[State]
    ) -> StepSize:
        """Makes a step ready to run: states resident, tokens and segments in their buffers."""
        counts = [len(piece) for piece in pieces]
        slots, moved = self._resident.place(states, counts)
        if moved:  # recorded plans point to memory that is gone
            self._forget_steps()
        size = step_size(counts, self.slots)
        at = 0
        for i, (piece, state, slot) in enumerate(zip(pieces, states, slots, strict=True)):
            count = counts[i]
            self._token_view[at : at + count] = piece
            self._owner_view[at : at + count] = i
            self._segment_view[i] = at, count, slot, state.position
            at += count
        self._segment_view[len(pieces) : size.sequences] = 0
        self._owner_view[at : size.tokens] = 0
        for tables in self._ops.host_tables_kept:
            tables.bring(self._token_view[: size.tokens])
        return size

    def _step(self, size: StepSize, output: Output) -> Step:
        return self._steps.get((size, output)) or self._record(size, output)

    def _submit(self, plan: Plan) -> None:
        plan.submit()
        started = time.perf_counter_ns()
        plan.wait()
        self.wait_ns += time.perf_counter_ns() - started

    def _logits(self, step: Step | ObservedStep, count: int) -> NDArray[np.float32]:
        assert step.work is not None
        rows = step.logits
        found = step.work.download(np.float32, (count, rows.shape[-1]), rows.offset)
        return np.ascontiguousarray(found[:, : self.config.vocab])

    def _write(self, size: StepSize, output: Output) -> tuple[PlanBuilder, Temporary]:
        """The calls of a step, and where its logits are."""
        assert self._buffers is not None
        how = self._weights, self.config.vocab, self._buffers, self._choices
        return write_step(self._file, self._ops, *how, size, output)

    def _record(self, size: StepSize, output: Output, timestamps: Timing = "none") -> Step:
        """A step's plan; where there is no memory for it, those of other sizes are let go."""
        try:
            return self._recorded(size, output, timestamps)
        except OutOfMemoryError:
            self._forget_steps()
        with self._preflight.explaining(self.needs):
            return self._recorded(size, output, timestamps)

    def _recorded(self, size: StepSize, output: Output, timestamps: Timing) -> Step:
        builder, logits = self._write(size, output)
        dispatches, work = builder.finish(self.device)
        try:
            name = f"{self.config.version} {output} of {size.tokens} tokens"
            plan = Plan(self.device, dispatches, timestamps, name)
        except BaseException:
            if work is not None:
                work.close()
            raise
        step = Step(plan, builder.calls, work, logits)
        if timestamps == "none":
            self._steps[(size, output)] = step
        return step

    def _forget_steps(self) -> None:
        for step in self._steps.values():
            step.close()
        self._steps.clear()
        self._forget_observed()

    # What tools ask

    def use(self, kernels: KernelSet) -> None:
        """Runs with these kernels from here on; they must take the weights as they lie."""
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
        self._forget_steps()
        self._close_observed()
        self._ops.close()
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
        if self._choices is not None:
            self._choices.close()
        if self.owns_device:
            self.device.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
