"""A process of its own that loads a model and says when its first token was there.

It has the runtime alone, and whoever starts it leaves no compiler within its reach.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.errors import MeasureError

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class FirstToken:
    """Seconds of one start.

    Attributes:
        process: from the start of the process to the first token.
        load: from opening the bundle to the first token: kernels, weights, plan, run.
        read: to read the weight file as it is, right before.
    """

    process: float
    load: float
    read: float

    @property
    def ratio(self) -> float:
        """How many times the reading the loading takes."""
        return self.load / self.read


def first_token(settings: dict[str, Any]) -> FirstToken:
    """Reads the file, then starts a process that loads it.

    Args:
        settings: path, device, and what else load_model takes by these names; "bundle" is a folder.

    Raises:
        MeasureError: the process failed; says why.
    """
    read = read_seconds(Path(settings["path"]))
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
    return FirstToken(found["process"], found["load"], read)


def read_seconds(path: Path) -> float:
    """Seconds to read a file into memory; from the system's cache where it lies there."""
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        data = file.readall()
    took = time.perf_counter() - started
    if not data:
        raise MeasureError(f"{path}: empty")
    return took


def main() -> None:
    """Loads what stdin says; prints seconds as JSON."""
    settings = json.load(sys.stdin)
    from kernelforge_runtime import open_device
    from kernelforge_runtime.bundle import KernelSet
    from kernelforge_runtime.models import load_model

    started_ns, place = settings.pop("started_ns"), settings.pop("bundle")
    path = settings.pop("path")
    with open_device(settings.pop("device")) as device:
        begun = time.perf_counter()
        kernels = KernelSet.open(device.info, place)
        with load_model(path, device, kernels, **settings) as model:
            model.greedy(1, model.new_state())
            load = time.perf_counter() - begun
            process = (time.time_ns() - started_ns) / 1e9
    print(json.dumps({"process": process, "load": load}))


if __name__ == "__main__":
    main()
