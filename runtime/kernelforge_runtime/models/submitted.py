"""Submits steps: one that is waited for at once, or one behind the other while the host works.

A step that was submitted is a flight. The next one may follow before it has landed: the tokens that
it chooses are the next one's inputs without the host having seen them. Whoever else needs the model
meanwhile gets it: flights are waited for, and what they were for is kept on the host.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import DeviceError, OutOfMemoryError
from kernelforge_runtime.models.device_choice import Choice, tell
from kernelforge_runtime.models.inputs import Rows
from kernelforge_runtime.models.observed import ObservedStep
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.recorded import RecordedSteps, Step, StepPlans
from kernelforge_runtime.models.resident import ResidentStates
from kernelforge_runtime.models.step_size import step_size
from kernelforge_runtime.ops.vulkan_step import StepSize
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.state import State

Pieces = Sequence[Sequence[int] | NDArray[np.uint32]]


@dataclass(eq=False)
class Flight:
    """A step that was submitted and may still run.

    Attributes:
        step: what was submitted.
        plans: of it, with the half of the inputs that it reads.
        half: which that is.
        output: what is wanted of it.
        outputs: sequences, the first ones, whose logits or tokens are wanted.
        decided: whether the device was told how to choose.
        logits: read back early, since the model was needed for something else.
        tokens: likewise.
    """

    step: Step
    plans: StepPlans
    half: int
    output: Output
    outputs: int
    decided: bool = False
    logits: NDArray[np.float32] | None = None
    tokens: NDArray[np.uint32] | None = None

    @property
    def is_parked(self) -> bool:
        """Whether its logits are on the host, where a token must be chosen from them then."""
        return self.logits is not None


class SubmittedSteps(RecordedSteps):
    """What a model on a device does to run steps."""

    wait_ns: int
    _resident: ResidentStates
    _flights: list[Flight]
    _awaited: Plan | None = None
    """What was submitted to be waited for at once; still set where an interrupt broke that off."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """Sequences that one step can advance."""

    def launch(
        self,
        pieces: Pieces,
        states: Sequence[State],
        output: Output,
        outputs: int,
        rows: Rows = None,
    ) -> Flight:
        """Submits a step, and returns while it runs.

        Args:
            pieces: checked ids of every sequence, at least one each.
            states: one each, none twice.
            output: "last", "greedy", or "choice", which must be decided then.
            outputs: whose logits or tokens are wanted: those of the first sequences.
            rows: the vectors that stand among the pieces, in their order; see Inputs.
        """
        size = self._place(pieces, states, rows)
        counts = [len(piece) for piece in pieces]
        return self._launched(self._step(size, output), 0, output, states, counts, outputs)

    def follow(
        self,
        flight: Flight,
        pieces: Pieces | None,
        states: Sequence[State],
        outputs: int,
        rows: Rows = None,
    ) -> Flight | None:
        """Submits another step while a flight goes on.

        Args:
            flight: the last one; decided, where its tokens are this one's.
            pieces: checked ids; None for the tokens that the flight chooses, one of each sequence.
            states: of these sequences; in the flight's order, where there are no pieces.
            outputs: as of `launch`, like the next.
            rows: vectors.

        Returns:
            None where that cannot be: it is to be launched once the other has landed.
        """
        if not self._flights or self._flights[-1] is not flight or flight.is_parked:
            return None
        if self._ops.host_tables_kept:  # rows of known tokens, brought by the host
            return None
        counts = [1] * len(states) if pieces is None else [len(piece) for piece in pieces]
        slots = self._resident.slots_of(states, counts)
        size = step_size(counts, self.slots, rows is not None)
        step = self._steps.get((size, flight.output))
        if slots is None or step is None or not step.plan.is_measured:
            return None
        half = 1 - flight.half
        try:
            self._half(step, size, half)
        except OutOfMemoryError:
            return None
        self._tell_inputs(half, pieces, counts, slots, states, size, rows)
        return self._launched(step, half, flight.output, states, counts, outputs)

    def decide(self, flight: Flight, choices: Sequence[Choice | None]) -> None:
        """Tells the device how to choose the tokens of a flight; None leaves a row alone."""
        assert self._buffers is not None and flight.plans.choose is not None
        if flight.is_parked:
            return
        tell(self._buffers, choices)
        flight.plans.choose.submit(ahead=True)
        flight.decided = True

    def tokens_of(self, flight: Flight) -> NDArray[np.uint32] | None:
        """What the device chose, u32 [outputs]; None where logits are on the host instead."""
        if flight.tokens is None and flight.decided:
            flight.tokens = self._landed(flight)
        return flight.tokens

    def logits_of(self, flight: Flight) -> NDArray[np.float32]:
        """Waits for a flight; its logits, float32 [outputs, V], of decided rows penalised ones."""
        if flight.logits is not None:
            return flight.logits
        self._wait(flight.plans.run)
        if not flight.decided:
            self._forget_flight(flight)
        return self._logits(flight.step, flight.outputs)

    def peek(self, flight: Flight, row: int) -> NDArray[np.float32]:
        """Logits [V] of one sequence of a flight that is not decided; it stays as it is."""
        rows = flight.logits
        if rows is None:
            self._wait(flight.plans.run)
            rows = self._logits(flight.step, row + 1)
        found: NDArray[np.float32] = rows[row]
        return found

    def _landed(self, flight: Flight) -> NDArray[np.uint32]:
        assert self._buffers is not None
        self._wait(flight.plans.run)
        if flight.decided and flight.plans.choose is not None:
            self._wait(flight.plans.choose)
        self._forget_flight(flight)
        return self._buffers.chosen(flight.half)[: flight.outputs].copy()

    def _forget_flight(self, flight: Flight) -> None:
        if flight in self._flights:
            self._flights.remove(flight)

    def _launched(
        self,
        step: Step,
        half: int,
        output: Output,
        states: Sequence[State],
        counts: Sequence[int],
        outputs: int,
    ) -> Flight:
        plans = step.halves[half]
        measured = plans.run.is_measured
        plans.run.submit(ahead=measured)
        if not measured:
            self._wait(plans.run)
        for count, state in zip(counts, states, strict=True):
            state.position += count
        flight = Flight(step, plans, half, output, outputs, decided=output == "greedy")
        self._flights.append(flight)
        return flight

    def _settle(self) -> None:
        """Waits for everything that was submitted."""
        self._land_broken_off()
        for flight in self._flights:
            self._wait(flight.plans.run)
            if flight.plans.choose is not None:
                self._wait(flight.plans.choose)

    def _park(self) -> None:
        """Waits for every flight, and keeps on the host what it was for."""
        while self._flights:
            flight = self._flights.pop(0)
            if flight.decided:
                flight.tokens = self._landed(flight)
            else:
                flight.logits = self.logits_of(flight)

    def _advance(
        self, pieces: Pieces, states: Sequence[State], output: Output, rows: Rows = None
    ) -> Step:
        """Runs one step: a piece of every sequence."""
        size = self._place(pieces, states, rows)
        step = self._step(size, output)
        self._submit(step.plan)
        for piece, state in zip(pieces, states, strict=True):
            state.position += len(piece)
        return step

    def _place(self, pieces: Pieces, states: Sequence[State], rows: Rows = None) -> StepSize:
        """Makes a step ready to run: states resident, tokens and segments in the first half."""
        self._land_broken_off()
        if self._flights:
            self._park()
        counts = [len(piece) for piece in pieces]
        slots, moved = self._resident.place(states, counts)
        if moved:  # recorded plans point to memory that is gone
            self._forget_steps()
        size = step_size(counts, self.slots, rows is not None)
        if rows is not None:
            self._rows_given()
        self._tell_inputs(0, pieces, counts, slots, states, size, rows)
        return size

    def _tell_inputs(
        self,
        half: int,
        pieces: Pieces | None,
        counts: Sequence[int],
        slots: Sequence[int],
        states: Sequence[State],
        size: StepSize,
        rows: Rows,
    ) -> None:
        buffers = self._buffers
        assert buffers is not None
        segments = [(n, slot, s.position) for n, slot, s in zip(counts, slots, states, strict=True)]
        buffers.write(half, pieces, segments, size.tokens, size.sequences)
        if rows is not None:
            self._rows_given().bring(half, buffers.tokens(half)[: size.tokens], rows)
            return
        for tables in self._ops.host_tables_kept:
            tables.bring(buffers.tokens(half)[: size.tokens])

    def _submit(self, plan: Plan) -> None:
        self._awaited = plan
        plan.submit()
        self._wait(plan)

    def _wait(self, plan: Plan) -> None:
        self._resident.require_open()  # what ran ahead may be asked for after the end
        started = time.perf_counter_ns()
        try:
            plan.wait()
        except DeviceError:  # it is not waited for again: the device is gone
            self._awaited = None
            raise
        self.wait_ns += time.perf_counter_ns() - started
        if self._awaited is plan:
            self._awaited = None

    def _land_broken_off(self) -> None:
        """Waits for what an interrupt left running: it still reads inputs and writes a state."""
        if self._awaited is not None and self._awaited.is_running:  # others may have waited for it
            self._wait(self._awaited)

    def _logits(self, step: Step | ObservedStep, count: int) -> NDArray[np.float32]:
        if not count:
            return np.empty((0, self.config.vocab), np.float32)
        assert step.work is not None
        rows = step.logits
        found = step.work.download(np.float32, (count, rows.shape[-1]), rows.offset)
        return np.ascontiguousarray(found[:, : self.config.vocab])
