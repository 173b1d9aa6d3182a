"""A process of its own that loads a model and says when its first token was there.

It has the runtime alone, and whoever starts it leaves no compiler within its reach.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernelforge.errors import MeasureError

TIMEOUT_S = 600.0
REREAD_BYTES = 1 << 20


@dataclass(frozen=True)
class FirstToken:
    """Seconds of one start.

    Attributes:
        process: from the start of the process to the first token.
        load: from opening the bundle to the first token: kernels, weights, plan, run.
        read: to read the whole weight file into fresh memory, right before, as
            `open(path, "rb").read()` does: what loading is compared with.
        reread: to read it through one small buffer that is used again and again: a copy out of the
            system's cache, without the memory for it.
        parts: of `load`: `bundle` to open it, `checks` of the file and of memory, `weights` to
            read and pack them, `step` to record the first one and run it. Threads make `pipelines`
            beside the weights: their seconds are in the weights' already.
    """

    process: float
    load: float
    read: float
    reread: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times the reading the loading takes."""
        return self.load / self.read

    @property
    def ratio_reread(self) -> float:
        """How many times the reading through one buffer the loading takes."""
        return self.load / self.reread


def first_token(settings: dict[str, Any]) -> FirstToken:
    """Reads the file, then starts a process that loads it.

    Args:
        settings: path, device, memory (bytes that it may take, or None), and what else load_model
            takes by these names; "bundle" is a folder.

    Raises:
        MeasureError: the process failed; says why.
    """
    path = Path(settings["path"])
    reread, read = reread_seconds(path), read_seconds(path)
    command = [sys.executable, "-m", "kernelforge.cli.first_token"]
    env = {**os.environ, "PATH": os.devnull, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = json.dumps({**settings, "started_ns": time.time_ns()})
    try:
        done = subprocess.run(
            command, input=told, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise MeasureError(f"no first token within {TIMEOUT_S:g} s of starting") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasureError(f"no first token: {said[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return FirstToken(found["process"], found["load"], read, reread, found["parts"])


def read_seconds(path: Path) -> float:
    """Seconds to read a file into fresh memory; from the system's cache where it lies there."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        data = file.readall()
    took = time.perf_counter() - started
    if not data:
        raise MeasureError(f"{path}: empty")
    return took


def reread_seconds(path: Path) -> float:
    """Seconds to read a file piece by piece into the same memory."""
    buffer = bytearray(REREAD_BYTES)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def main() -> None:
    """Loads what stdin says; prints seconds as JSON, or in one line what went wrong."""
    settings = json.load(sys.stdin)
    from kernelforge_runtime.errors import KernelForgeError

    try:
        print(json.dumps(_timed(settings)))
    except KernelForgeError as error:
        sys.exit(str(error))


def _timed(settings: dict[str, Any]) -> dict[str, Any]:
    from kernelforge_runtime import open_device
    from kernelforge_runtime.models import load_model
    from kernelforge_runtime.models.registry import model_files
    from kernelforge_runtime.plan import open_kernels

    model_files()  # code is loaded by now, as that of all else is
    started_ns, place = settings.pop("started_ns"), settings.pop("bundle")
    path = settings.pop("path")
    with open_device(settings.pop("device"), memory=settings.pop("memory", None)) as device:
        begun = time.perf_counter()
        kernels = open_kernels(device, place)
        opened = time.perf_counter()
        with load_model(path, device, kernels, **settings) as model:
            ready = time.perf_counter()
            model.greedy(1, model.new_state())
            done = time.perf_counter()
            process = (time.time_ns() - started_ns) / 1e9
            weights, pipelines = model.loaded.seconds, model.loaded.pipeline_seconds
    parts = {
        "bundle": opened - begun,
        "checks": ready - opened - weights,
        "weights": weights,
        "pipelines": pipelines,
        "step": done - ready,
    }
    return {"process": process, "load": done - begun, "parts": parts}


if __name__ == "__main__":
    main()
