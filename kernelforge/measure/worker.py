"""The process that runs unproven kernels: `python -m kernelforge.measure.worker DESCRIPTOR`.

It has its own device, answers one request after another, and may die of any of them: whoever
started it has the deadline, and records what became of it. See `supervisor` and `protocol`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kernelforge.measure.bench import Bench
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.programs import first_line
from kernelforge.measure.protocol import (
    BEGUN,
    Channel,
    family_from_json,
    module_from_json,
    turns_to_json,
)
from kernelforge.measure.side_by_side import check_everywhere, time_in_turns
from kernelforge.measure.timed_problem import Effort
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.errors import DeviceError, KernelForgeError, OutOfMemoryError
from kernelforge_runtime.vk import Device, open_device

OWN_SHARE = 0.8
"""Of the time its parent gives it: a device that hangs is told as such, before the parent ends."""
GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1

Answer = Mapping[str, Any]


class Session:
    """What the requests of one worker share: its device, and the bench of the current problem."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._device: Device | None = None
        self._bench: Bench | None = None

    def answer(self, request: Mapping[str, Any], blobs: Sequence[bytes]) -> Answer:
        """What a request gives; errors of the project's kind become an answer too."""
        kind = request["do"]
        try:
            if kind == "open":
                return self._open(request)
            self._limit(request["seconds"])
            if kind == "measure":
                return self.measure(request, blobs[0])
            if kind == "check":
                return self.check(request, blobs[0])
            if kind == "turns":
                return self.turns(request, blobs)
            return {"error": f"request {kind!r} is not known"}
        except (OutOfMemoryError, MemoryError) as error:
            return {"failed": Outcome.OUT_OF_MEMORY.value, "reason": first_line(error)}
        except KernelForgeError as error:
            if isinstance(error, DeviceError) and kind != "open":
                return {"failed": Outcome.REJECTED.value, "reason": first_line(error)}
            return {"error": first_line(error)}

    def measure(self, request: Mapping[str, Any], spirv: bytes) -> Answer:
        """Verifies and times one variant."""
        blank = Measurement.from_json(request["blank"])
        module = module_from_json(request["module"], spirv)
        found = self._need().measure_module(blank, module, request["incumbent_ns"])
        return {"measurement": found.to_json()}

    def check(self, request: Mapping[str, Any], spirv: bytes) -> Answer:
        """Verifies one variant on the full problem and at the corners."""
        module = module_from_json(request["module"], spirv)
        found = check_everywhere(self._need(), module, request["params"], request["seed"])
        return {"verification": asdict(found)}

    def turns(self, request: Mapping[str, Any], blobs: Sequence[bytes]) -> Answer:
        """Times several variants in turns; says before each run whose turn it is."""
        modules = [module_from_json(m, b) for m, b in zip(request["modules"], blobs, strict=True)]
        found = time_in_turns(
            self._need(),
            modules,
            request["fastest_ns"],
            request["rounds"],
            request["time_s"],
            request["seed"],
            lambda name: self._channel.send({"turn": name}),
        )
        return {"turns": turns_to_json(found)}

    def close(self) -> None:
        """Frees the device memory, and the device."""
        if self._bench is not None:
            self._bench.close()
        if self._device is not None:
            self._device.close()

    def _open(self, request: Mapping[str, Any]) -> Answer:
        if self._bench is not None:
            self._bench.close()
            self._bench = None
        if self._device is None:
            self._device = open_device(request["device"])
        family = family_from_json(request["family"])
        self._bench = Bench(
            self._device,
            family,
            family.precision(request["precision"]),
            Problem(**request["problem"]),
            seed=request["seed"],
            effort=Effort(**request["effort"]),
            verify_on=Problem(**request["verify_on"]),
        )
        self._bench.watch.on_lost = self._lost
        return {"opened": self._device.info.slug}

    def _limit(self, seconds: float) -> None:
        self._need().watch.until = time.monotonic() + OWN_SHARE * seconds

    def _lost(self, reason: str, late: bool) -> None:
        """Tells, and ends: releasing what a running kernel uses would wait for it, or crash."""
        outcome = Outcome.TIMED_OUT if late else Outcome.DEVICE_LOST
        self._channel.send({"lost": outcome.value, "reason": reason})
        os._exit(0)

    def _need(self) -> Bench:
        if self._bench is None:
            raise DeviceError("no problem was opened; send an open request first")
        return self._bench


def serve(descriptor: int, make: type[Session] = Session) -> None:
    """Answers requests until the other end is gone.

    Args:
        descriptor: of the socket to the parent.
        make: what answers.
    """
    die_with_parent()
    # Drivers print what they like; the parent reads why a worker died from where errors go.
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's business
    channel = Channel(descriptor)
    session = make(channel)
    while True:
        try:
            request, blobs = channel.receive()
            channel.send({BEGUN: True})
        except (EOFError, OSError):
            break
        with own_alarm(float(request.get("seconds", 60.0))):
            channel.send(session.answer(request, blobs))
    with own_alarm(GRACE_S):
        session.close()


def die_with_parent() -> None:
    """Asks the system to end this process with its parent; where it cannot, the alarms must do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def own_alarm(seconds: float) -> Any:
    """Ends this process if the block takes much longer, even where it hangs inside a driver.

    The signal keeps its default action: no Python needs to run for it.
    """
    if not hasattr(signal, "alarm"):
        yield
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds + GRACE_S))
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
