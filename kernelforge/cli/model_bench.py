"""Times prefill and decode of loaded models in turns. Says nothing: `bench` shows the results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from kernelforge.errors import PeerError
from kernelforge.measure import statistics
from kernelforge_runtime.bundle import Match
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.ops.builder import Temporary, TemporarySlice
from kernelforge_runtime.state import State

WARM_TOKENS = 4
_SEED = 1


@dataclass
class Samples:
    """What one model gave for one test, a value per repetition.

    Attributes:
        tok_per_s: tokens per second of wall time.
        host_us: wall time per token that was not spent waiting for the device.
        failed: why another engine gave no more; empty where it did.
    """

    tok_per_s: list[float] = field(default_factory=list)
    host_us: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def host_median_us(self) -> float:
        """Median of `host_us`; NaN where there is no device to wait for."""
        return statistics.median(self.host_us)


class Subject:
    """A loaded model with the one state that all of its runs go on with.

    What is in the state does not matter for speed; that it is already on the device does: moving
    it there is no part of prefill or decode.
    """

    def __init__(self, name: str, model: Model | Reference) -> None:
        self.name, self.model = name, model
        self.state: State = model.new_state()
        self._tokens = np.random.default_rng(_SEED).integers(0, model.config.vocab, 1 << 16)
        self._token = 0

    def prefill(self, tokens: int) -> tuple[float, float]:
        """Runs a prompt: (tokens per second, host us per token)."""
        prompt = np.resize(self._tokens, tokens).tolist()
        return self._timed(tokens, lambda: self._forward(prompt))

    def decode(self, tokens: int) -> tuple[float, float]:
        """Generates greedily, each token the next one's input."""
        return self._timed(tokens, lambda: self._greedy(tokens))

    def warm(self, test: str, tokens: int) -> None:
        """Records the plans and fills the caches that the test needs."""
        if test == "pp":
            self.prefill(tokens)
        else:
            self.decode(min(tokens, WARM_TOKENS))

    def _timed(self, tokens: int, work: Callable[[], None]) -> tuple[float, float]:
        waited = getattr(self.model, "wait_ns", 0)
        started = time.perf_counter_ns()
        work()
        took = time.perf_counter_ns() - started
        waited = getattr(self.model, "wait_ns", 0) - waited
        return tokens / took * 1e9, (took - waited) / tokens / 1e3

    def _forward(self, prompt: Sequence[int]) -> None:
        self.model.forward(prompt, self.state)

    def _greedy(self, tokens: int) -> None:
        greedy, state, token = self.model.greedy, self.state, self._token
        for _ in range(tokens):
            token = greedy(token, state)
        self._token = token


class Runs(Protocol):
    """What can be measured: a loaded model of ours, or another engine."""

    @property
    def model(self) -> Model | Reference | None:
        """Ours; None of another engine."""

    def prefill(self, tokens: int) -> tuple[float, float]:
        """Runs a prompt: (tokens per second, host us per token)."""

    def decode(self, tokens: int) -> tuple[float, float]:
        """Runs tokens one by one: (tokens per second, host us per token)."""

    def warm(self, test: str, tokens: int) -> None:
        """What need not be measured."""


def measure(subjects: Sequence[Runs], test: str, tokens: int, repetitions: int) -> list[Samples]:
    """Runs a test on each subject in turns: A B A B ...

    Args:
        subjects: one, or two to be compared.
        test: "pp" or "tg".
        tokens: of a prompt, or to generate.
        repetitions: of each subject, after one run that does not count.

    Returns:
        Of each subject; of another engine that failed, what it gave until then, and why.
    """
    found = [Samples() for _ in subjects]
    turns = [(subject, samples) for subject, samples in zip(subjects, found, strict=True)]
    for subject, samples in turns:
        with _given_up(samples):
            subject.warm(test, tokens)
    for _ in range(repetitions):
        for subject, samples in turns:
            if samples.failed:
                continue
            with _given_up(samples):
                run = subject.prefill if test == "pp" else subject.decode
                speed, host_us = run(tokens)
                samples.tok_per_s.append(speed)
                if isinstance(subject.model, Model):
                    samples.host_us.append(host_us)
    return found


@contextlib.contextmanager
def _given_up(samples: Samples) -> Iterator[None]:
    """Another engine that fails in the middle must not cost what the rest has measured."""
    try:
        yield
    except PeerError as error:
        samples.failed = str(error)


def touched_bytes(model: Model) -> int:
    """Weight bytes that decoding one token needs.

    What the dispatches of a step read and none of them writes: of an embedding table one row,
    and neither recurrent state nor temporaries.
    """
    calls = model.calls(1)
    written = set()
    for call in calls:
        for binding in call.selection.entry.signature.bindings:
            if binding.access != "read" and not binding.is_own:
                written.add(_place(call.operands[binding.name]))
    total = 0
    for call in calls:
        for binding in call.selection.entry.signature.bindings:
            if binding.is_own:
                continue
            operand = call.operands[binding.name]
            if isinstance(operand, Temporary | TemporarySlice) or _place(operand) in written:
                continue
            nbytes = binding.nbytes(call.problem)
            if call.selection.entry.family == "embedding" and binding.name == "table":
                nbytes //= call.problem["V"]
            total += nbytes
    return total


def describe_kernels(model: Model) -> str:
    """How exact the kernels are: `60 tuned for this problem on this device, 3 generic`."""
    found = model.matches()
    return ", ".join(f"{found[match]} {match.value}" for match in Match if match in found)


def _place(operand: object) -> object:
    buffer = getattr(operand, "buffer", operand)
    return id(buffer), getattr(operand, "offset", 0)
