"""Is a compiled module what its family declared, and is it valid SPIR-V?"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from kernelforge.errors import CompileError
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.spirv import Reflection, check_module
from kernelforge_runtime.errors import SpirvError

_TARGET = "vulkan1.2"


def check_declared(module: ShaderModule) -> Reflection:
    """What the module declares, once that agrees with its signature.

    Raises:
        CompileError: template and signature disagree; says on what.
    """
    try:
        return check_module(module)
    except SpirvError as error:
        raise CompileError(f"template and signature disagree: {error}") from error


def validate(module: ShaderModule) -> bool:
    """Runs spirv-val on the module; False where that is not installed.

    Raises:
        CompileError: the module is not valid.
    """
    path = shutil.which("spirv-val")
    if path is None:
        return False
    with tempfile.NamedTemporaryFile(suffix=".spv", prefix="kernelforge-") as file:
        Path(file.name).write_bytes(module.spirv)
        result = subprocess.run(
            [path, "--target-env", _TARGET, file.name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    if result.returncode != 0:
        text = " ".join((result.stdout + result.stderr).split())[:300]
        raise CompileError(f"module {module.name} is not valid SPIR-V: {text}")
    return True
