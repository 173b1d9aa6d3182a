"""A model on a Vulkan device: weights uploaded once, steps recorded once per size and replayed."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.select import KernelSet, Match
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.formats import weight_format
from kernelforge_runtime.models.registry import recognise
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.ops import VulkanOps
from kernelforge_runtime.ops.builder import Call, PlanBuilder, Temporary
from kernelforge_runtime.ops.device_weights import DeviceState
from kernelforge_runtime.ops.vulkan_ops import StepBuffers
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.plan.plan import Timing
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Buffer, Device
from kernelforge_runtime.weights import Checkpoint, open_checkpoint

Output = Literal["last", "full", "greedy"]
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of tokens that plans are recorded for; a chunk runs in the smallest that holds it."""


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


class Model:
    """A loaded model. Use it as a context manager, or close it.

    Attributes:
        config: sizes of the model.
        device: where it runs.
        kernels: the bundles its kernels come from.
        weights: the weight format.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: Device, kernels: KernelSet, weights: DType
    ) -> None:
        self._file = recognise(checkpoint)
        self.config: ModelConfig = self._file.read_config(checkpoint)
        self.device, self.kernels, self.weights = device, kernels, weights
        self._ops = VulkanOps(device, kernels, weights)
        self._steps: dict[tuple[int, Output], Step] = {}
        self._resident: weakref.ref[State] | None = None
        self._buffers: StepBuffers | None = None
        self.wait_ns = 0
        """Host time spent waiting for the device so far."""
        self.owns_device = False
        """Whether closing the model closes the device too."""
        try:
            self._weights = self._file.load(self._ops, checkpoint, self.config)
            for name, (entries, *shape) in self.config.state_shapes.items():
                arena = self._ops.store.arena
                self._ops.state[name] = DeviceState.make(arena, entries, tuple(shape))
            self._buffers = StepBuffers(
                device.buffer(16, "step", host_visible=True),
                device.buffer(4 * max(BUCKETS), "tokens", host_visible=True),
            )
            self._step_view = self._buffers.step.view(np.uint32)
            self._token_view = self._buffers.token.view(np.uint32)
            self._token_view[:] = 0
        except BaseException:
            self.close()
            raise

    # State

    def new_state(self) -> State:
        """The state before the first token."""
        return State.zero(self.config.version, self.config.state_shapes)

    def load_state(self, path: str | os.PathLike[str]) -> State:
        """Reads a state file of this model; see State.load."""
        return State.load(path, self.config.version, self.config.state_shapes)

    def read_state(self) -> dict[str, NDArray[np.float32]]:
        """The resident state's values."""
        return {
            name: self._ops.state[name].read(shape[0])
            for name, shape in self.config.state_shapes.items()
        }

    def _make_resident(self, state: State) -> None:
        current = self._resident() if self._resident is not None else None
        if current is state:
            return
        state.check(self.config.version, self.config.state_shapes)
        if current is not None:
            current.move_out()
        for name, array in state.arrays.items():
            self._ops.state[name].write(array)
        state.move_in(self)
        self._resident = weakref.ref(state)

    # Steps

    def forward(
        self,
        tokens: Sequence[int],
        state: State | None = None,
        full_output: bool = False,
        chunk: int = max(BUCKETS),
    ) -> tuple[NDArray[np.float32], State]:
        """Runs tokens through the model, in chunks.

        Args:
            tokens: ids, at least one.
            state: updated in place and returned; None starts anew. `clone` it first to keep it.
            full_output: logits of every token, [T, V], instead of the last one's, [V].
            chunk: tokens per step at most.

        Raises:
            ModelError: a token is not in the vocabulary, or there is none.
        """
        ids = check_tokens(tokens, self.config.vocab)
        state = state if state is not None else self.new_state()
        self._make_resident(state)
        size = max(1, min(chunk, max(BUCKETS)))
        output: Output = "full" if full_output else "last"
        pieces = []
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            step = self._run(piece, output)
            if full_output:
                pieces.append(self._logits(step, len(piece)))
        if full_output:
            return np.concatenate(pieces), state
        return self._logits(step, 1)[0], state

    def greedy(self, token: int, state: State) -> int:
        """Runs one token; the id of the largest logit, chosen on the device."""
        self._place(token, state)
        step = self._steps.get((1, "greedy")) or self._record(1, "greedy")
        self._submit(step.plan)
        return int(self._token_view[0])  # argmax writes where the next step reads

    def _place(self, token: int, state: State) -> None:
        """Makes a step of one token ready to run."""
        if not 0 <= token < self.config.vocab:  # a NumPy check costs more than the step's Python
            check_tokens([token], self.config.vocab)
        self._make_resident(state)
        self._token_view[0], self._step_view[0] = token, 1

    def _run(self, ids: NDArray[np.uint32], output: Output) -> Step:
        bucket = next(b for b in BUCKETS if b >= len(ids))
        step = self._steps.get((bucket, output)) or self._record(bucket, output)
        self._token_view[: len(ids)] = ids
        self._step_view[0] = len(ids)
        self._submit(step.plan)
        return step

    def _submit(self, plan: Plan) -> None:
        plan.submit()
        started = time.perf_counter_ns()
        plan.wait()
        self.wait_ns += time.perf_counter_ns() - started

    def _logits(self, step: Step, count: int) -> NDArray[np.float32]:
        assert step.work is not None
        rows = step.logits
        found = step.work.download(np.float32, (count, rows.shape[-1]), rows.offset)
        return np.ascontiguousarray(found[:, : self.config.vocab])

    def _write(self, tokens: int, output: Output) -> tuple[PlanBuilder, Temporary]:
        """The calls of a step, and where its logits are."""
        assert self._buffers is not None
        self._ops.begin(tokens, self._buffers)
        logits: Temporary = self._file.step(self._ops, self._weights, output == "full")
        if output == "greedy":
            self._ops.argmax(logits, self.config.vocab, self._buffers.token)
        builder = self._ops.finish()
        logits.last = len(builder.calls)  # read after the step: nothing may overwrite it
        return builder, logits

    def _record(self, tokens: int, output: Output, timestamps: Timing = "none") -> Step:
        builder, logits = self._write(tokens, output)
        dispatches, work = builder.finish(self.device)
        try:
            name = f"{self.config.version} {output} of {tokens} tokens"
            plan = Plan(self.device, dispatches, timestamps, name)
        except BaseException:
            if work is not None:
                work.close()
            raise
        step = Step(plan, builder.calls, work, logits)
        if timestamps == "none":
            self._steps[(tokens, output)] = step
        return step

    # What tools ask

    def calls(self, tokens: int = 1, output: Output = "greedy") -> list[Call]:
        """Every dispatch of a step of `tokens` tokens, in order, with the kernel chosen for it."""
        return self._write(tokens, output)[0].calls

    def problems(self, tokens: Sequence[int] = (1, 256)) -> list[tuple[str, str, Problem, int]]:
        """(family, precision, problem, calls) of the steps of these sizes, without repeats."""
        found: dict[tuple[str, str, Problem], int] = {}
        for count in tokens:
            for call in self.calls(count, "greedy" if count == 1 else "last"):
                entry = call.selection.entry
                key = (entry.family, entry.precision, call.problem)
                found[key] = found.get(key, 0) + 1
        return [(*key, calls) for key, calls in found.items()]

    def matches(self, tokens: int = 1) -> dict[Match, int]:
        """How many dispatches of a step were chosen how exactly."""
        found: dict[Match, int] = {}
        for call in self.calls(tokens):
            found[call.selection.match] = found.get(call.selection.match, 0) + 1
        return found

    def trace(self, token: int, state: State) -> list[tuple[Call, float]]:
        """Runs one token with a timestamp after every dispatch: (call, ns) in order.

        The state moves on as in `greedy`. Empty times where the queue has no timestamps.
        """
        self._place(token, state)
        step = self._record(1, "greedy", "each")
        try:
            step.plan.run()
            return list(zip(step.calls, step.plan.dispatch_ns(), strict=False))
        finally:
            step.close()

    @property
    def weight_bytes(self) -> int:
        """Device memory of weights and state, in bytes."""
        return self._ops.store.arena.nbytes

    def close(self) -> None:
        """Releases plans, weights and state memory; the resident state is read back first."""
        current = self._resident() if self._resident is not None else None
        if current is not None:
            current.move_out()
        self._resident = None
        for step in self._steps.values():
            step.close()
        self._steps.clear()
        self._ops.close()
        if self._buffers is not None:
            self._buffers.step.close()
            self._buffers.token.close()
            self._buffers = None
        if self.owns_device:
            self.device.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_model(
    path: str | os.PathLike[str],
    device: Device,
    bundle: KernelSet | None = None,
    weights: str = "f16",
) -> Model:
    """Loads a model onto a device.

    Args:
        path: a .pth or .safetensors checkpoint.
        device: an open device.
        bundle: kernels; the best bundle for the device where None.
        weights: "f32", "bf16" (lossless for released checkpoints) or "f16".

    Raises:
        ModelError: the file cannot be read, is no model of a known version, or does not fit f16.
        BundleError: there are no kernels for it.
        OutOfMemoryError: it does not fit the device.
    """
    with open_checkpoint(path) as checkpoint:
        kernels = bundle if bundle is not None else KernelSet.open(device.info)
        return Model(checkpoint, device, kernels, weight_format(weights))
