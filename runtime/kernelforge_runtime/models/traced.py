"""Steps with timestamps around every dispatch, for whoever asks where the time goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.ops.builder import Call
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.plan.plan import Timing
from kernelforge_runtime.state import State


@dataclass(frozen=True)
class StepTrace:
    """What one run of a step took on the device, in ns; nothing where there are no timestamps.

    Attributes:
        calls: every dispatch, in order.
        dispatch_ns: of each, from when what it waits for is done until it is done itself.
        barrier_ns: before each: waiting for, and making visible, what earlier ones wrote; NaN where
            no barrier stands.
    """

    calls: list[Call]
    dispatch_ns: list[float]
    barrier_ns: list[float]


class Recorded(Protocol):
    """A recorded step, as a model keeps it."""

    @property
    def plan(self) -> Plan:
        """What runs."""

    @property
    def calls(self) -> list[Call]:
        """What it was made from."""

    def close(self) -> None:
        """Releases it."""


class TracedSteps:
    """What a model on a device adds to be timed."""

    config: ModelConfig

    @abstractmethod
    def _place(
        self, pieces: Sequence[Sequence[int] | NDArray[np.uint32]], states: Sequence[State]
    ) -> StepSize:
        """Makes a step ready to run."""

    @abstractmethod
    def _record(self, size: StepSize, output: Output, timestamps: Timing = "none") -> Recorded:
        """Records a step."""

    def trace(self, tokens: Sequence[int], *states: State, repeats: int = 1) -> list[StepTrace]:
        """Runs one step again and again with timestamps around every dispatch.

        The states move on each time. With one of them, one token is decoded as `greedy` does it;
        more, up to 256, are a chunk of a prompt. With several, one token of each is decoded.
        """
        return [
            StepTrace(calls, plan.dispatch_ns(), plan.barrier_ns())
            for plan, calls in self._timed(tokens, states, "each", repeats)
        ]

    def step_ns(self, tokens: Sequence[int], *states: State, repeats: int = 1) -> list[float]:
        """Time on the device of the same steps with a timestamp at either end only, in ns."""
        return [plan.elapsed_ns() for plan, _ in self._timed(tokens, states, "ends", repeats)]

    def _timed(
        self, tokens: Sequence[int], states: Sequence[State], timing: Timing, repeats: int
    ) -> Iterator[tuple[Plan, list[Call]]]:
        ids = check_tokens(tokens, self.config.vocab)
        pieces = np.split(ids, len(states))
        for _ in range(repeats):
            size = self._place(pieces, states)
            # Anew each time: a state that grows may have moved.
            step = self._record(size, "greedy" if len(ids) == 1 else "last", timing)
            try:
                step.plan.run()
                for state, piece in zip(states, pieces, strict=True):
                    state.position += len(piece)
                yield step.plan, step.calls
            finally:
                step.close()
