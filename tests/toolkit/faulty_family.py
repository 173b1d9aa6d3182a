"""A family whose variants fail in every way there is, and a worker that fails where they cannot.

Some faults are in the shader and real. Others no shader can bring about on every machine: there the
worker that is asked to measure such a variant dies as a driver would have made it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.measure.worker import Answer, Session, serve
from kernelforge.space import Choice, Constraint, Space
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import OutOfMemoryError
from tests.toolkit.small_family import signature, small_family

WORKER = (sys.executable, "-m", "tests.toolkit.faulty_family")
HARMLESS = ("none", "slow")
WRONG = ("wrong", "overrun", "hole", "mirrored", "short")
"""Shaders that compute something else."""
BROKEN = ("broken",)
OUTCOMES = {
    "endless": "TIMED_OUT",  # a shader that never ends
    "wild": "CRASHED",  # a shader that writes where no memory is
    "killed": "CRASHED",
    "aborted": "ABORTED",
    "exited": "ABORTED",
    "stuck": "HUNG",
    "lost": "DEVICE_LOST",
    "memory": "OUT_OF_MEMORY",
    "nonsense": "CRASHED",
}
"""What a fault that ends its process, or could, is recorded as."""
LATE = ("brittle", "fickle")
"""Right and fast while it is searched; dies when it is checked, or timed, once more at the end."""


EVERY = (*HARMLESS, *WRONG, *BROKEN, *OUTCOMES)
GONE = "KERNELFORGE_TEST_GONE"
"""Environment variable: while the file that it names is there, the device is gone."""


def faulty_family(faults: Sequence[str], rows: int) -> KernelFamily:
    """The family with these faults, "none" first; `rows` bounds how many variants it has."""
    faults = tuple(faults)
    space = Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128), default=16),
        Choice("ROWS", (1, 2, 4, 8), default=1),
        Choice("FAULT", faults, default=faults[0]),
        Constraint("not too many rows", lambda p, d: p["WORKGROUP"] * p["ROWS"] <= rows),
        Constraint(
            "each deadly fault twice",
            lambda p, d: (
                p["FAULT"] not in OUTCOMES or (p["ROWS"] == 1 and p["WORKGROUP"] in (8, 32))
            ),
        ),
    )
    source = (__name__, "faulty_family", (list(faults), rows))
    return small_family(space=space, signature=_signature, source=source)


def _signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    addressing = "address" if params["FAULT"] == "wild" else "descriptor"
    return replace(signature(precision, params), addressing=addressing)


class FaultySession(Session):
    """Does to itself what the variant's name says."""

    def measure(self, request: Mapping[str, Any], spirv: bytes) -> Answer:
        if Path(os.environ.get(GONE, "/nonexistent")).exists():
            self._lost("the device was lost (VK_ERROR_DEVICE_LOST)", late=False)
        fault = request["module"]["name"].split("FAULT=")[1].split(".")[0]
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "aborted":
            os.write(2, b"driver: assertion failed\n")
            os.abort()
        if fault == "exited":
            os._exit(3)
        if fault == "stuck":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(3600)
        if fault == "lost":
            self._lost("the device was lost (VK_ERROR_DEVICE_LOST)", late=False)
        if fault == "memory":
            raise OutOfMemoryError("allocating: out of device memory")
        if fault == "nonsense":
            return {"measurement": {"outcome": "OK", "variant": 7}}
        return super().measure(request, spirv)

    def check(self, request: Mapping[str, Any], spirv: bytes) -> Answer:
        if "FAULT=brittle" in request["module"]["name"]:
            os.abort()
        return super().check(request, spirv)

    def turns(self, request: Mapping[str, Any], blobs: Sequence[bytes]) -> Answer:
        for module in request["modules"]:
            if "FAULT=fickle" in module["name"]:
                self._channel.send({"turn": module["name"]})
                os.kill(os.getpid(), signal.SIGKILL)
        return super().turns(request, blobs)


if __name__ == "__main__":
    serve(int(sys.argv[1]), FaultySession)
