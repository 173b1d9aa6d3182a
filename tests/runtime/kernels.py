"""Small kernels for tests of the device layer and of plans: GLSL bodies, compiled on the spot."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from kernelforge.compile import compile_glsl, find_compiler
from kernelforge.errors import CompileError
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32

GLSL = {"f32": "float", "u32": "uint"}
X = Binding("x", F32, ("N",))
Y = Binding("y", F32, ("N",), "write")
Y_BOTH = Binding("y", F32, ("N",), "readwrite")
WORDS = Binding("y", U32, ("N",), "write")
N = PushConstant("N")
ALPHA = PushConstant("alpha", F32)


@cache
def kernel(
    body: str,
    bindings: tuple[Binding, ...] = (X, Y),
    constants: tuple[PushConstant, ...] = (N,),
    extensions: str = "",
    workgroup: int = 64,
    addressing: Any = "descriptor",
    **more: Any,
) -> ShaderModule:
    """A kernel over N elements whose body sees `i`, its bindings and its push constants."""
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
    lines = ["#version 460", *(f"#extension {e} : require" for e in extensions.split())]
    push = [f"{GLSL[c.dtype.name]} {c.name};" for c in constants]
    if addressing == "address":
        lines.append("#extension GL_EXT_buffer_reference : require")
        head = "layout(buffer_reference, std430, buffer_reference_align = 16)"
        for b in bindings:
            lines.append(f"{head} {only(b)}buffer At_{b.name} {{ {GLSL[b.dtype.name]} data[]; }};")
        push = [f"At_{b.name} at_{b.name};" for b in bindings] + push
        lines += [f"#define {b.name} at_{b.name}.data" for b in bindings]
    else:
        for i, b in enumerate(bindings):
            layout = f"layout(set = 0, binding = {i}, std430)"
            lines.append(f"{layout} {only(b)}buffer B{i} {{ {GLSL[b.dtype.name]} {b.name}[]; }};")
    if push:
        lines.append(f"layout(push_constant) uniform Push {{ {' '.join(push)} }};")
    lines.append(f"layout(local_size_x = {workgroup}) in;")
    lines.append(f"void main() {{ uint i = gl_GlobalInvocationID[0]; {body} }}")
    signature = Signature(
        bindings,
        constants,
        more.pop("grid", Grid((CeilDiv("N", workgroup),))),
        workgroup,
        addressing=addressing,
        **more,
    )
    return ShaderModule(f"test of {body!r}", compile_glsl("\n".join(lines), body), signature)


def only(binding: Binding) -> str:
    return "readonly " if binding.access == "read" else ""


def plus_one(addressing: Any = "descriptor") -> ShaderModule:
    """Y = x + 1."""
    return kernel("if (i < N) y[i] = x[i] + 1.0;", addressing=addressing)


def increment() -> ShaderModule:
    """Y = y + 1, in place."""
    return kernel("if (i < N) y[i] += 1.0;", (Y_BOTH,))


def slow() -> ShaderModule:
    """Takes time that grows with `rounds`, which no compiler can work out beforehand."""
    body = "uint v = i; for (uint r = 0u; r < rounds; r++) v = v * 1664525u + (v >> 7); y[i] = v;"
    return kernel(body, (WORDS,), (PushConstant("rounds"),))
