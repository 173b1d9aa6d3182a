"""Which GLSL extensions the compiler knows: found out once per compiler, and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path

from kernelforge.compile.glslang import Compiler, compile_glsl, find_compiler
from kernelforge.errors import CompileError
from kernelforge.resources import cache_dir
from kernelforge_runtime.written_file import written_whole

log = logging.getLogger(__name__)

_REFUSED = "extension not supported"
"""What glslang says of an extension that it does not know. Whatever else goes wrong is asked again
by the next process."""


def accepts(extension: str) -> bool:
    """Whether the compiler knows this GLSL extension.

    Raises:
        CompileError: there is no compiler.
    """
    compiler = find_compiler()
    return _accepts(compiler, _answers_file(compiler), extension)


def _answers_file(compiler: Compiler) -> Path:
    """Where the answers of this compiler are: another path, time or size is another compiler."""
    stat = Path(compiler.path).stat()
    identity = f"{compiler.path}\n{stat.st_mtime_ns}\n{stat.st_size}\n{compiler.version}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return cache_dir() / "extensions" / f"{name}.json"


@lru_cache(maxsize=64)
def _accepts(compiler: Compiler, answers: Path, extension: str) -> bool:
    known = _read(answers)
    if extension in known:
        return known[extension]
    glsl = f"#version 460\n#extension {extension} : require\nvoid main() {{}}\n"
    answer, final = True, True
    try:
        compile_glsl(glsl, f"probe of {extension}", compiler=compiler)
    except CompileError as error:
        answer, final = False, _REFUSED in str(error)
    if final:
        _write(answers, {**_read(answers), extension: answer})
    return answer


def _read(path: Path) -> dict[str, bool]:
    """The answers kept; none where there is no such file, or it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): answer for name, answer in found.items() if isinstance(answer, bool)}


def _write(path: Path, answers: dict[str, bool]) -> None:
    """Keeps them; of two processes that write at once one's answers are asked again later."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps(answers, indent=1, sort_keys=True).encode())
    except OSError as error:
        log.info("cannot keep what the compiler knows in %s: %s", path, error)
