"""What a model's steps would do, asked before or without running them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence, Sized
from typing import Literal

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.select import Match
from kernelforge_runtime.models.dispatches import DispatchCount
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.ops.builder import Call, PlanBuilder, Temporary
from kernelforge_runtime.ops.device_rounding import rounding_problems
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.weight_formats import WeightFormats

Output = Literal["last", "full", "greedy", "choice"]


class PlannedSteps:
    """The questions that tools ask of a model on a device."""

    formats: WeightFormats
    _steps: Sized

    @property
    def recorded_steps(self) -> int:
        """Plans recorded so far: a step of a size and an output that ran before records nothing."""
        return len(self._steps)

    @abstractmethod
    def _write(self, size: StepSize, output: Output) -> tuple[PlanBuilder, Temporary]:
        """The calls of a step, and where its logits are."""

    def calls(self, tokens: int = 1, output: Output = "greedy", sequences: int = 1) -> list[Call]:
        """Every dispatch of a step, in order, with the kernel chosen for it."""
        size = StepSize(tokens, sequences, single=tokens == sequences)
        return self._write(size, output)[0].calls

    def problems(
        self, tokens: Sequence[int] = (1, 256), slots: Sequence[int] = ()
    ) -> list[tuple[str, str, Problem, int]]:
        """(family, precision, problem, calls) of the steps of these sizes, without repeats.

        Kernels that could take the place of others count too: which is faster is to be measured.

        Args:
            tokens: of one sequence in a step; 1 is decoding, with the choice of the next token.
            slots: sequences that decode together, a token each. The head multiplies all of them.
        """
        sizes: list[tuple[StepSize, Output]] = [
            (StepSize(count, 1, single=count == 1), "greedy" if count == 1 else "last")
            for count in tokens
        ]
        sizes += [(StepSize(count, count, single=True), "last") for count in slots]
        found: dict[tuple[str, str, Problem], int] = {}
        for size, output in sizes:
            builder, _ = self._write(size, output)
            wanted = list(builder.forgone)
            for call in builder.calls:
                entry = call.selection.entry
                wanted.append((entry.family, entry.precision, call.problem))
            for key in wanted:
                found[key] = found.get(key, 0) + 1
        return [(*key, calls) for key, calls in found.items()]

    def load_problems(self) -> list[tuple[str, str, Problem, int]]:
        """As of `problems`: what loading a file in the formats of this model calls."""
        return rounding_problems(self.formats)

    def dispatches(self, tokens: int = 1) -> DispatchCount:
        """How many dispatches the step takes that so many tokens of one sequence run in.

        One token is decoding, with the choice of the next one; more are a prompt's, up to a chunk.
        """
        held = next((size for size in BUCKETS if size >= tokens), max(BUCKETS))
        return DispatchCount.of(self.calls(held, "greedy" if held == 1 else "last"))

    def matches(self, tokens: int = 1) -> dict[Match, int]:
        """How many dispatches of a step were chosen how exactly."""
        found: dict[Match, int] = {}
        for call in self.calls(tokens):
            found[call.selection.match] = found.get(call.selection.match, 0) + 1
        return found
