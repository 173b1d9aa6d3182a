"""Runs the command line as its users do: in a process of its own."""

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kernelforge.convert.random_model import random_model
from kernelforge.errors import CompileError
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.vk import list_devices

ROOT = Path(__file__).resolve().parents[2]
GENERIC = ROOT / "tuned" / "generic"
DEVICE = "llvmpipe"
NO_VULKAN = {"VK_DRIVER_FILES": "/nonexistent.json", "VK_ADD_DRIVER_FILES": ""}
NO_TOOLS = {"PATH": "/nonexistent"}


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child: this checkout's packages, nothing of the user's."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    base = {**os.environ, "PYTHONPATH": path, "KERNELFORGE_VALIDATION": "0", "COLUMNS": "100"}
    return {**base, "KERNELFORGE_DEVICE": DEVICE, **changes}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kernelforge", *map(str, arguments)]


def kernelforge(*arguments: object, stdin: str = "", **changes: str):
    """Runs one command; changes are to its environment."""
    return subprocess.run(
        command(*arguments),
        env=environment(**changes),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@dataclass(frozen=True)
class Workplace:
    """A folder with a tiny random model and a copy of the generic bundle.

    Attributes:
        env: what makes a child use them and write nowhere else.
    """

    folder: Path
    model: Path
    tuned: Path
    env: dict[str, str]


@cache
def workplace() -> Workplace:
    """Made once per test run; skips where there is no device or no compiler."""
    need_device()
    need_compiler()
    folder = Path(os.environ["KERNELFORGE_TEST_PLACE"])
    tuned = folder / "tuned"
    with (folder / "lock").open("w") as lock:  # the processes of a run share it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (tuned / "generic").is_dir():
            shutil.copytree(GENERIC, tuned / "generic")
    env = {"KERNELFORGE_TUNED": str(tuned), "XDG_DATA_HOME": str(folder / "data")}
    return Workplace(folder, tiny_model(), tuned, env)


@cache
def tiny_model() -> Path:
    """One layer of width 64 over bytes, random weights."""
    keeper = tempfile.TemporaryDirectory(prefix="kernelforge-test-")
    atexit.register(keeper.cleanup)
    return random_model("L1.C64.V256", Path(keeper.name))


def need_device() -> None:
    try:
        names = [info.slug for info in list_devices()]
    except DeviceError as error:
        pytest.skip(f"no Vulkan: {error}")
    if DEVICE not in names:
        pytest.skip(f"no device {DEVICE}: it stands in for a GPU here")


def need_compiler() -> None:
    from kernelforge.compile import find_compiler

    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")


def one_line(text: str, start: str) -> str:
    """The text, once it is one line that begins like this."""
    assert text.count("\n") == 1, text
    assert text.startswith(start), text
    return text.strip()
