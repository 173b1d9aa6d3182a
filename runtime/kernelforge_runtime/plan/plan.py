"""A recorded list of dispatches: checked, bound and recorded once, then replayed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import PlanError
from kernelforge_runtime.plan.cuts import Cuts, submit_limit
from kernelforge_runtime.plan.dispatch import Dispatch
from kernelforge_runtime.plan.scratch import Scratch
from kernelforge_runtime.plan.sets import descriptor_sets
from kernelforge_runtime.vk import BufferSlice, CommandBuffer, Device, TimestampPool
from kernelforge_runtime.vk.descriptors import DescriptorPool
from kernelforge_runtime.vk.pipeline import Pipeline

Timing = Literal["none", "ends", "each"]
DEFAULT_TIMEOUT_S = 600.0
"""Long enough for a large model on a software device; a device that hangs is given up after it."""


class Plan:
    """Dispatches in order, in one command buffer, or in several where a watchdog wants it.

    A barrier stands only between dispatches where one touches what an earlier one wrote, or
    writes what an earlier one reads; and before the first where plans run one behind the other.

    Attributes:
        dispatches: what runs.
        clock: "timestamp", or "host" where the queue has no timestamps.
    """

    def __init__(
        self,
        device: Device,
        dispatches: Sequence[Dispatch],
        timestamps: Timing = "none",
        name: str = "plan",
        brought: Sequence[tuple[BufferSlice, BufferSlice]] = (),
        follows: bool = False,
    ) -> None:
        """Records them.

        Args:
            device: where they run.
            dispatches: in order.
            timestamps: where times are taken.
            name: for messages.
            brought: what each run copies before its first dispatch, and where to.
            follows: whether a run may be submitted while another plan's still goes on.
        """
        self.device, self.name = device, name
        self._brought, self._follows = tuple(brought), follows
        watched = submit_limit(device.info.device_type) if timestamps == "none" else None
        self._cuts = Cuts(len(dispatches), watched)
        self._stale = self._running = self._ahead = False
        self._scratch = Scratch(device, dispatches, name)
        self.dispatches = tuple(self._scratch.completed(d) for d in dispatches)
        self.timing: Timing = timestamps
        self.clock = "timestamp" if device.info.timestamp_bits else "host"
        self._barriers: list[bool] = []
        self._host_ns = 0.0
        self._started = 0.0
        self._ran = False
        self._pool: TimestampPool | None = None
        self._descriptors: DescriptorPool | None = None
        self._commands: list[CommandBuffer] = []
        self._held: list[Pipeline] = []
        try:
            self._record()
        except BaseException:
            self.close()
            raise

    def _record(self) -> None:
        device = self.device
        bound = [d.bound() for d in self.dispatches]
        pipelines = [self._pipeline(dispatch) for dispatch in self.dispatches]
        self._descriptors, sets = descriptor_sets(device, self.dispatches, pipelines, bound)
        if self.timing != "none" and self.clock == "timestamp":
            count = 2 if self.timing == "ends" else 2 * len(self.dispatches) + 1
            self._pool = TimestampPool(device, count)
        commands = self._part()
        if self._follows:
            commands.barrier()
        for source, target in self._brought:
            commands.copy(source.buffer, source.offset, target.buffer, target.offset, source.nbytes)
        if self._brought:
            commands.barrier()
        if self._pool is not None:
            commands.reset_timestamps(self._pool)
            commands.timestamp(self._pool, 0)
        hazards = _Hazards()
        ends = {*self._cuts.ends[:-1]}
        for i, dispatch in enumerate(self.dispatches):
            if i in ends:  # a barrier waits for what earlier parts did, too
                commands.end()
                commands = self._part()
            waits = hazards.between(dispatch, bound[i])
            self._barriers.append(waits)
            if waits:
                commands.barrier()
            if self._pool is not None and self.timing == "each":
                commands.timestamp(self._pool, 2 * i + 1)
            commands.dispatch(pipelines[i], sets[i], dispatch.push(), dispatch.counts(device.info))
            if self._pool is not None and self.timing == "each":
                commands.timestamp(self._pool, 2 * i + 2)
        if self._pool is not None and self.timing == "ends":
            commands.timestamp(self._pool, 1)
        commands.end()

    def _pipeline(self, dispatch: Dispatch) -> Pipeline:
        module = dispatch.module
        room = module.signature.window_room(dispatch.dims)
        self._held.append(self.device.pipelines.hold(module, room))
        return self._held[-1]

    def _part(self) -> CommandBuffer:
        self._commands.append(CommandBuffer(self.device, self.name))
        self._commands[-1].begin()
        return self._commands[-1]

    def _record_anew(self) -> None:
        """Records the parts as they were found to be right."""
        self._release()
        self._barriers, self._stale = [], False
        self._record()

    @property
    def submits(self) -> int:
        """How many submits a run takes."""
        return len(self._cuts.ends)

    @property
    def barriers(self) -> int:
        """How many barriers stand between the dispatches."""
        return sum(self._barriers)

    @property
    def is_measured(self) -> bool:
        """Whether it is known what its parts take, so that it may be submitted ahead."""
        return self._cuts.is_measured and not self._stale

    @property
    def is_running(self) -> bool:
        """Whether it was submitted and not waited for to the end."""
        return self._running and bool(self._commands)

    def submit(self, ahead: bool = False) -> None:
        """Starts a run; wait for it before the next one.

        Args:
            ahead: whether another plan still runs, or the host does other things before it waits.
        """
        assert self._commands
        if self._running:  # waiting for it was broken off, by an interrupt for one
            self.wait()
        if self._stale:
            self._record_anew()
        self._started, self._ahead = time.perf_counter(), ahead
        self._running = True
        for part in self._commands:
            part.submit()

    def wait(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits for the run.

        Raises:
            DeviceLostError: the device was lost, or did not finish in time.
        """
        assert self._commands
        # Ahead of the host only what it waits for is sure to be this run's time.
        times, before = [], time.perf_counter() if self._ahead else self._started
        for part in self._commands:
            part.wait(timeout_s)
            done = time.perf_counter()
            times.append(done - before)
            before = done
        if self._running and (self._cuts.is_measured or not self._ahead):
            self._stale = self._cuts.learn(times)
        self._ran, self._running = True, False
        self._host_ns = (before - self._started) * 1e9

    def run(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Submits and waits."""
        self.submit()
        self.wait(timeout_s)

    def elapsed_ns(self) -> float:
        """Time of the last run from first to last dispatch; host time where `clock` says so.

        Raises:
            PlanError: the plan was made without timestamps, or has not run.
        """
        self._timed()
        if self._pool is None:
            return self._host_ns
        return float(self._pool.read_ns()[-1])

    def dispatch_ns(self) -> list[float]:
        """Time of each dispatch of the last run; needs `timestamps="each"` and that clock.

        A timestamp stands on either side of it, so that what it waits for is not counted.
        """
        return [float(t) for t in self._gaps()[1::2]]

    def barrier_ns(self) -> list[float]:
        """Time from the end of one dispatch to the start of the next; NaN where no barrier is."""
        gaps = self._gaps()[::2]
        return [float(t) if b else math.nan for t, b in zip(gaps, self._barriers, strict=False)]

    def _gaps(self) -> NDArray[np.float64]:
        """Times between timestamps of the last run: before a dispatch, of it, before the next."""
        self._timed()
        if self._pool is None or self.timing != "each":
            return np.zeros(0)
        return np.diff(self._pool.read_ns())

    def _timed(self) -> None:
        # A driver asked for a timestamp that was never written waits for it, for ever.
        if self.timing == "none" or not self._ran:
            why = "was made without timestamps" if self.timing == "none" else "has not run yet"
            raise PlanError(f"time of plan {self.name!r} was asked for: it {why}")

    def close(self) -> None:
        """Releases what the plan recorded; a second call does nothing."""
        self._release()
        self._scratch.close()

    def _release(self) -> None:
        for part in (*self._commands, self._descriptors, self._pool):
            if part is not None:
                part.close()
        self._commands, self._descriptors, self._pool = [], None, None
        held, self._held = self._held, []
        if self.device.handle is not None:
            self.device.pipelines.let_go(held)

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Hazards:
    """What was read and written since the last barrier."""

    def __init__(self) -> None:
        self._read: list[tuple[int, int, int]] = []
        self._written: list[tuple[int, int, int]] = []

    def between(self, dispatch: Dispatch, bound: Sequence[BufferSlice]) -> bool:
        """Whether `dispatch` needs a barrier before it; remembers what it touches."""
        reads, writes = [], []
        for binding, piece in zip(dispatch.module.signature.bindings, bound, strict=True):
            span = (id(piece.buffer), piece.offset, piece.offset + piece.nbytes)
            if binding.access != "write":
                reads.append(span)
            if binding.access != "read":
                writes.append(span)
        needed = (
            _overlap(reads, self._written)
            or _overlap(writes, self._written)
            or _overlap(writes, self._read)
        )
        if needed:
            self._read, self._written = [], []
        self._read += reads
        self._written += writes
        return needed


def _overlap(some: list[tuple[int, int, int]], others: list[tuple[int, int, int]]) -> bool:
    return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in some for b in others)
