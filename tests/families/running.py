"""Runs one variant of a family on given arrays; outputs start as NaN, so that gaps are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernelforge.compile import compile_variant, find_compiler
from kernelforge.errors import CompileError
from kernelforge.family import KernelFamily
from kernelforge.measure.verify import compare, reduction_length
from kernelforge.measure.workspace import host_bytes
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import Device

UNWRITTEN = 0x7FC0DEAD
"""A NaN that no kernel computes."""
GUARD_BYTES = 1024
"""After each buffer, bound with it: what a kernel writes there is an error."""


def variants(
    family: KernelFamily,
    precision: DType,
    device: Device,
    problem: Problem,
    *changes: dict[str, Any],
) -> list[dict[str, Any]]:
    """The default for this device and problem, and those changes of it that are possible here."""
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
    default = family.default(precision, device.info, problem)
    found = [default]
    for change in changes:
        params = {**default, **change}
        possible = family.space.refuses(params, device.info, problem) is None
        if possible and family.fits(precision, params, device.info) is None and params not in found:
            found.append(params)
    return found


def declared(family: KernelFamily, problem: Problem) -> dict[str, Any]:
    """The declared default, in which a parameter named like a dimension has its value."""
    default = family.space.declared_default
    return {name: problem.get(name, value) for name, value in default.items()}


def keeps_subnormals(device: Device) -> bool:
    """Whether float32 subnormals are known to stay what they are, which Vulkan leaves open.

    llvmpipe of Mesa 25.0 keeps them, that of Mesa 26.1 and SwiftShader make zeros of them.
    """
    return device.info.slug == "llvmpipe" and device.info.driver_info.startswith("Mesa 25.")


def run(
    device: Device,
    family: KernelFamily,
    precision: DType,
    params: Mapping[str, Any],
    problem: Problem,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, int | float] | None = None,
    shared: Mapping[str, str] | None = None,
) -> dict[str, NDArray[Any]]:
    """Every binding that the kernel writes, after one run.

    Args:
        device: where.
        family: of the variant.
        precision: of the variant.
        params: of the variant.
        problem: dimensions.
        given: host arrays; what is not given starts as UNWRITTEN words.
        constants: push constants that are no dimensions; the family's own where None.
        shared: binding -> the binding whose memory it is.
    """
    module = compile_variant(family, precision, params)
    buffers = {}
    for binding in module.signature.bindings:
        data = given.get(binding.name)
        if data is not None and binding.layout:
            data = host_bytes(binding, problem, {binding.name: data})
        nbytes = max(binding.nbytes(problem), data.nbytes if data is not None else 0)
        buffers[binding.name] = device.buffer(nbytes + GUARD_BYTES, binding.name)
        buffers[binding.name].fill(UNWRITTEN)
        if binding.access == "zeroed":
            data = np.zeros(binding.nbytes(problem) // 4, np.uint32)
        if data is not None:
            buffers[binding.name].upload(data)
    bound = {**buffers, **{name: buffers[other] for name, other in (shared or {}).items()}}
    try:
        extra = family.constants(problem) if constants is None else constants
        written = [b for b in module.signature.bindings if b.access != "read"]
        ends = {b.name: -(-b.nbytes(problem) // 4) for b in written}
        before = {b.name: bound[b.name].download(np.uint32) for b in written}
        with Plan(device, [Dispatch(module, problem, bound, extra)]) as plan:
            plan.run()
        for name, end in ends.items():
            after = bound[name].download(np.uint32)
            assert (after[end:] == before[name][end:]).all(), f"{name} was written past its end"
        found = {b.name: bound[b.name].download(b.dtype.np, b.extent(problem)) for b in written}
        for binding in written:
            assert binding.access != "zeroed" or not found[binding.name].any(), binding.name
        return {b.name: found[b.name] for b in written if not b.is_own}
    finally:
        for buffer in buffers.values():
            buffer.close()


def assert_close(
    family: KernelFamily,
    problem: Problem,
    found: Mapping[str, NDArray[Any]],
    expected: Mapping[str, NDArray[Any]],
    note: Any = "",
) -> None:
    """Every expected output, within the tolerance that the tuner allows."""
    signature = family.signature(family.precisions[0], declared(family, problem))
    for binding in signature.bindings:
        if binding.name in expected:
            length = reduction_length(problem, binding.shape)
            result = compare(
                binding.name, found[binding.name], np.asarray(expected[binding.name]),
                binding.dtype, length, family.tolerance,
            )  # fmt: skip
            assert result.ok, f"{result.reason} {note}"


def unwritten(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which elements of a float32 output nobody wrote."""
    return array.view(np.uint32) == UNWRITTEN
