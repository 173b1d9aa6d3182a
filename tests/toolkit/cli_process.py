"""Runs the command line as its users do: in a process of its own."""

import atexit
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kernelforge.cli.options import CEILINGS_FILE
from kernelforge.convert.random_model import random_model
from kernelforge.errors import CompileError
from kernelforge.measure.baseline import Ceilings
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


def tune_here(monkeypatch: pytest.MonkeyPatch, *arguments: object, **changes: str) -> int:
    """Tunes in this process, whose finals are short: for tests of what comes after, or of much.

    As a command of its own it takes seconds for the finals of each problem.
    """
    from kernelforge.cli.main import main

    with monkeypatch.context() as patch:
        for name, value in environment(**changes).items():
            patch.setenv(name, value)
        patch.setattr("kernelforge.tune.budget.Budget.finals_s", 0.05)
        return main(["tune", *map(str, arguments)])


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


def known_ceilings(journal: Path) -> Path:
    """The journal's folder, as if an earlier run had measured there what the device can do at best.

    That takes each run of the tuner seconds; a test that is about something else does without.
    """
    info = next(info for info in list_devices() if info.slug == DEVICE)
    driver = f"{info.driver_name} {info.driver_info}".strip()
    known = Ceilings(10.0, 10.0, 50.0, 10.0, 50.0, info.slug, driver, "device")
    journal.mkdir(parents=True, exist_ok=True)
    (journal / CEILINGS_FILE).write_text(json.dumps(known.to_json()), encoding="utf-8")
    return journal


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
