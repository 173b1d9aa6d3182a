"""From a variant to a checked SPIR-V module: render, compile, compare with the signature."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kernelforge.compile.cache import SpirvCache
from kernelforge.compile.check import (
    buildable,
    check_declared,
    extensions_in,
    missing_extensions,
    validate,
)
from kernelforge.compile.glslang import Compiler, compile_glsl, find_compiler, working_compiler
from kernelforge.compile.probe import accepts
from kernelforge.errors import CompileError
from kernelforge.family import KernelFamily
from kernelforge.render import Rendered, render
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import KernelForgeError

__all__ = [
    "Compiler",
    "SpirvCache",
    "accepts",
    "buildable",
    "compile_glsl",
    "compile_many",
    "compile_rendered",
    "compile_variant",
    "extensions_in",
    "find_compiler",
    "missing_extensions",
    "validate",
    "working_compiler",
]

Request = tuple[KernelFamily, str | DType, Mapping[str, Any]]
"""Family, precision and parameters of a variant to compile."""


def compile_variant(
    family: KernelFamily,
    precision: str | DType,
    params: Mapping[str, Any],
    cache: SpirvCache | None = None,
) -> ShaderModule:
    """The variant's SPIR-V, checked against its signature.

    Args:
        family: what it is a variant of.
        precision: element type, or its name.
        params: one value for each parameter of the family's space.
        cache: where compiled modules are kept; the user's cache folder if None.

    Raises:
        SpaceError: precision or parameters are not the family's.
        RenderError: the template is wrong.
        CompileError: it does not compile, there is no compiler, or the result does not agree with
            the signature.
    """
    return compile_rendered(family, precision, params, render(family, precision, params), cache)


def compile_rendered(
    family: KernelFamily,
    precision: str | DType,
    params: Mapping[str, Any],
    rendered: Rendered,
    cache: SpirvCache | None = None,
) -> ShaderModule:
    """As `compile_variant`, for a variant that has been rendered already."""
    name = rendered.variant
    carried = carried_store()
    signature = family.signature(family.precision(precision), family.space.normalise(params))
    if carried is not None and (spirv := carried.get(rendered.sha256)) is not None:
        module = ShaderModule(name, spirv, signature)
        check_declared(module)
        return module
    compiler = find_compiler()
    store = cache if cache is not None else SpirvCache()
    key = store.key(rendered.glsl, compiler)
    spirv = store.get(key)
    kept = spirv is not None
    if spirv is None:
        if missing := missing_extensions(family, rendered.glsl):
            raise CompileError(
                f"{name} needs {', '.join(missing)}: glslang {compiler.version} does not know "
                "that; point KERNELFORGE_GLSLANG at a newer glslangValidator"
            )
        spirv = compile_glsl(rendered.glsl, name, rendered.locate, compiler)
    module = ShaderModule(name, spirv, signature)
    check_declared(module)
    if not kept:
        store.put(key, spirv)
    if carried is not None:
        carried.put(rendered.sha256, spirv)
    return module


def carried_store() -> SpirvCache | None:
    """The folder that KERNELFORGE_SPIRV names: SPIR-V to carry to machines without a compiler.

    Its keys are those of the GLSL alone. What is compiled while the variable is set is added to it;
    what is in it needs no compiler.
    """
    folder = os.environ.get("KERNELFORGE_SPIRV")
    return SpirvCache(Path(folder)) if folder else None


def compile_many(
    requests: Iterable[Request],
    workers: int | None = None,
    cache: SpirvCache | None = None,
    done: Callable[[int, ShaderModule | CompileError], None] | None = None,
) -> list[ShaderModule | CompileError]:
    """Compiles variants side by side; one that fails does not stop the others.

    Args:
        requests: what to compile.
        workers: how many at once; as many as there are processors if None.
        cache: as for `compile_variant`.
        done: called with index and result as each finishes, from any thread.

    Returns:
        A module or an error for each request, in their order.
    """
    store = cache if cache is not None else SpirvCache()

    def one(index: int, request: Request) -> ShaderModule | CompileError:
        result: ShaderModule | CompileError
        try:
            result = compile_variant(*request, cache=store)
        except CompileError as error:
            result = error
        except KernelForgeError as error:
            result = CompileError(str(error))
            result.__cause__ = error
        if done is not None:
            done(index, result)
        return result

    # Threads are enough: the time goes into one compiler process for each.
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda item: one(*item), enumerate(requests)))
