"""What the compiler can build; whether a module is as its family declared and valid SPIR-V."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from kernelforge.compile.glslang import find_compiler
from kernelforge.compile.probe import accepts
from kernelforge.errors import CompileError
from kernelforge.family import KernelFamily
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.spirv import Reflection, check_module
from kernelforge_runtime.errors import SpirvError

FEATURE_EXTENSIONS = {
    "cooperative_matrix": "GL_KHR_cooperative_matrix",
    # Older compilers do not know GL_EXT_integer_dot_product, but this knows any instruction.
    "integer_dot": "GL_EXT_spirv_intrinsics",
    **dict.fromkeys(
        ("matrix_elements", "matrix_flexible", "matrix_tensors", "matrix_workgroup"),
        "GL_NV_cooperative_matrix2",
    ),
}
"""The GLSL extension by which kernels use a device's feature, where compilers in use lack it."""
_TARGETS: dict[tuple[int, ...], str] = {(1, 6): "vulkan1.3"}
"""By the version of SPIR-V; Vulkan 1.2 for those before."""
_EXTENSION = re.compile(r"^#extension +(GL_\w+) *: *require", re.MULTILINE)


def extensions_in(glsl: str) -> tuple[str, ...]:
    """The GLSL extensions that a source, or a template, requires; each once, in order."""
    return tuple(dict.fromkeys(_EXTENSION.findall(glsl)))


def missing_extensions(family: KernelFamily, glsl: str = "") -> tuple[str, ...]:
    """The GLSL extensions that the family or this source requires and the compiler does not know.

    Raises:
        CompileError: there is no compiler.
    """
    required = dict.fromkeys((*family.requires, *extensions_in(glsl)))
    return tuple(extension for extension in required if not accepts(extension))


def buildable(info: DeviceInfo) -> DeviceInfo:
    """The device with no feature that the compiler here cannot use: what variants are chosen for.

    Without a compiler it is the device itself: what is carried along was compiled elsewhere.
    """
    used = {f: e for f, e in FEATURE_EXTENSIONS.items() if f in info.features}
    try:
        find_compiler()
    except CompileError:
        return info
    unknown = {feature for feature, extension in used.items() if not accepts(extension)}
    return replace(info, features=info.features - unknown) if unknown else info


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
    # Of the header alone: what follows may be what is wrong.
    version = tuple(module.spirv[6:4:-1])
    target = _TARGETS.get(version, "vulkan1.2")
    with tempfile.NamedTemporaryFile(suffix=".spv", prefix="kernelforge-") as file:
        Path(file.name).write_bytes(module.spirv)
        result = subprocess.run(
            [path, "--target-env", target, file.name],
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
