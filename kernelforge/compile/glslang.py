"""GLSL to SPIR-V with glslangValidator, the compiler that distributions ship.

Its errors are turned into template lines by the caller's `locate`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kernelforge.errors import CompileError

log = logging.getLogger(__name__)

FLAGS = ("--target-env", "vulkan1.2", "-V", "-g0", "-S", "comp")
"""Debug information is left out, so that SPIR-V depends on nothing but the code."""
NEEDS_SPIRV_16 = ("GL_NV_cooperative_matrix2",)
"""Extensions that the SPIR-V of Vulkan 1.2 cannot have; devices with them have Vulkan 1.3."""
TIME_LIMIT_S = 120.0

_EMPTY = "#version 450\nvoid main() {}\n"
_MAGIC = (b"\x03\x02\x23\x07", b"\x07\x23\x02\x03")
_NAMES = ("glslangValidator", "glslang")
_VERSION = re.compile(r"Glslang Version: *(\S+)")
_ERROR = re.compile(r"ERROR: (?:[^:\n]*:(\d+): )?(.*)")
# What glslang adds after the errors that say something.
_SUMMARY = re.compile(r"\d+ compilation errors|'' : compilation terminated")


@dataclass(frozen=True)
class Compiler:
    """The compiler found: its path, and its version as it prints it, e.g. `11:12.0.0`."""

    path: str
    version: str


def find_compiler() -> Compiler:
    """The compiler of `KERNELFORGE_GLSLANG`, else of the search path.

    Raises:
        CompileError: there is none, or it does not answer.
    """
    override = os.environ.get("KERNELFORGE_GLSLANG")
    candidates = (override,) if override else _NAMES
    path = next((p for p in map(shutil.which, candidates) if p), None)
    if path is None:
        where = f"KERNELFORGE_GLSLANG={override}" if override else "the search path"
        raise CompileError(
            f"no GLSL compiler: {where} has no glslangValidator; apt-get install glslang-tools "
            "(running a model from a bundle needs none)"
        )
    path = str(Path(path).absolute())  # it will run in another folder
    stat = Path(path).stat()
    return _query(path, stat.st_mtime_ns, stat.st_size)


def working_compiler() -> Compiler:
    """The compiler, once it has compiled something.

    To ask before a search: what a broken one makes of a variant would be kept as its failure.

    Raises:
        CompileError: there is none, or it compiles nothing.
    """
    compiler = find_compiler()
    try:
        spirv = compile_glsl(_EMPTY, "nothing", compiler=compiler)
    except CompileError as error:
        raise CompileError(f"{compiler.path} compiles not even an empty kernel: {error}") from error
    if spirv[:4] not in _MAGIC:
        raise CompileError(
            f"{compiler.path} writes no SPIR-V for an empty kernel; apt-get install glslang-tools"
        )
    return compiler


@lru_cache(maxsize=8)
def _query(path: str, mtime_ns: int, size: int) -> Compiler:
    output = _run([path, "--version"], None, 10.0).stdout
    match = _VERSION.search(output)
    if match is None:
        raise CompileError(
            f"{path} --version says no glslang version; apt-get install glslang-tools"
        )
    return Compiler(path, match[1])


def compile_glsl(
    glsl: str,
    name: str,
    locate: Callable[[int], str] = lambda line: f"line {line}",
    compiler: Compiler | None = None,
) -> bytes:
    """SPIR-V of a compute shader; the same bytes on every run.

    Args:
        glsl: source text.
        name: the variant's name, for errors.
        locate: says where a line of the source, counted from 1, came from.
        compiler: which one; the one that `find_compiler` gives if None.

    Raises:
        CompileError: there is no compiler, the source is wrong, or compiling takes too long.
    """
    compiler = compiler or find_compiler()
    with tempfile.TemporaryDirectory(prefix="kernelforge-") as folder:
        # Bare file names with the folder as working directory: no path can look like `FILE:LINE:`.
        Path(folder, "kernel.comp").write_text(glsl, encoding="utf-8")
        newer = ("--target-env", "spirv1.6") if any(e in glsl for e in NEEDS_SPIRV_16) else ()
        command = [compiler.path, *FLAGS, *newer, "-o", "kernel.spv", "kernel.comp"]
        result = _run(command, folder, TIME_LIMIT_S)
        output = Path(folder, "kernel.spv")
        if result.returncode == 0 and output.is_file():
            return output.read_bytes()
    log.debug("%s: glslang says\n%s%s", name, result.stdout, result.stderr)
    raise CompileError(f"{explain(result.stdout, result.returncode, locate)} (variant {name})")


def explain(output: str, returncode: int, locate: Callable[[int], str]) -> str:
    """One line from glslang's output: the first error, where it is, and how many follow."""
    errors = []
    for number, text in _ERROR.findall(output):
        if not _SUMMARY.search(text):
            place = locate(int(number)) if number else "glslang"
            errors.append(f"{place}: {text.strip()}")
    if not errors:
        said = " ".join(output.split())[:200]
        return f"glslang ended with {returncode} and said {said!r}"
    more = len(errors) - 1
    return errors[0] + (f"; and {more} more error{'s' * (more > 1)}" if more else "")


def _run(
    command: list[str], folder: str | None, limit_s: float
) -> subprocess.CompletedProcess[str]:
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a wrapper's own children end with it
        )
    except OSError as error:
        raise CompileError(f"{command[0]} could not be started: {error}") from error
    with process:
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except BaseException as error:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            message = f"{command[0]} took over {limit_s:g} s: it was stopped"
            raise CompileError(message) from None
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
