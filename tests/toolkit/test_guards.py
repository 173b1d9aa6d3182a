"""Verification sees every write that is not the kernel's to make, and reads outside of a buffer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelforge.errors import CompileError
from kernelforge.family import KernelFamily
from kernelforge.measure.verify import Verification, verify
from kernelforge.measure.workspace import GUARD_WORDS, POISON, Workspace
from kernelforge.space import Choice, Flag, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler

WORKGROUP = 16
PROBLEM = Problem(N=37)
ADDRESSINGS = pytest.mark.parametrize("addressing", ["descriptor", "address"])


def signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    return Signature(
        bindings=(Binding("source", F32, ("N",)), Binding("target", F32, ("N",), "write")),
        push_constants=(PushConstant("N"),),
        grid=Grid(x=(CeilDiv("N", WORKGROUP),)),
        workgroup=WORKGROUP,
        addressing="address" if params["ADDRESS"] else "descriptor",
    )


TRESPASS = KernelFamily(
    name="trespass",
    template="trespass.comp.j2",
    templates=Path(__file__).parent / "templates",
    dims=("N",),
    precisions=(F32,),
    space=Space(
        Choice("FAULT", ("none", "end", "start", "input", "read_end", "read_start"), "none"),
        Flag("ADDRESS", needs="buffer_device_address"),
    ),
    signature=signature,
    inputs=lambda problem, precision, rng: {"source": rng.random(problem["N"], np.float32)},
    oracle=lambda problem, precision, arrays, constants: {"target": arrays["source"]},
    cost=lambda problem, precision: (0.0, 8.0 * problem["N"]),
)


def verified(device: Device, addressing: str, fault: str) -> Verification:
    needs_compiler()
    params = {"FAULT": fault, "ADDRESS": addressing == "address"}
    if reason := TRESPASS.space.refuses(params, device.info):
        pytest.skip(reason)
    return verify(device, TRESPASS, F32, params, PROBLEM, 1)


@pytest.mark.vulkan
@pytest.mark.glslang
@ADDRESSINGS
def test_a_kernel_that_stays_inside_its_buffers_passes(device: Device, addressing: str) -> None:
    found = verified(device, addressing, "none")
    assert found.ok, found.reason


@pytest.mark.vulkan
@pytest.mark.glslang
@ADDRESSINGS
def test_a_write_one_element_past_the_end_is_caught(device: Device, addressing: str) -> None:
    found = verified(device, addressing, "end")
    assert not found.ok
    assert re.search(r"past the end of target: target\[end \+ word 0\]", found.reason)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_write_one_element_before_the_start_is_caught(device: Device) -> None:
    """Through addresses: a software device lets no kernel write before a descriptor's start."""
    found = verified(device, "address", "start")
    assert not found.ok
    assert re.search(r"before the start of target: target\[start - word 1\]", found.reason)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_write_to_an_input_through_its_address_is_caught(llvmpipe: Device) -> None:
    """On one device: SwiftShader's compiler crashes on the cast that such a kernel needs."""
    found = verified(llvmpipe, "address", "input")
    assert not found.ok
    assert "wrote to source, which is only read: source[word 0]" in found.reason


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_write_to_an_input_through_its_descriptor_does_not_compile(device: Device) -> None:
    with pytest.raises(CompileError, match="readonly"):
        verified(device, "descriptor", "input")


@pytest.mark.vulkan
@pytest.mark.glslang
@ADDRESSINGS
@pytest.mark.parametrize("fault", ["read_end", "read_start"])
def test_what_is_read_one_element_outside_of_an_input_gives_a_wrong_result(
    device: Device, addressing: str, fault: str
) -> None:
    found = verified(device, addressing, fault)
    assert not found.ok


@pytest.mark.vulkan
def test_guards_stand_on_both_sides_of_every_buffer_and_are_read_back(device: Device) -> None:
    bindings = signature(F32, TRESPASS.space.declared_default).bindings
    workspace = Workspace(device)
    try:
        given = {"source": np.zeros(PROBLEM["N"], np.float32)}
        pieces = workspace.load(signature(F32, TRESPASS.space.declared_default), PROBLEM, given)
        for binding in bindings:
            piece = pieces[binding.name]
            end = piece.offset + binding.nbytes(PROBLEM)
            assert piece.offset == 4 * GUARD_WORDS
            assert piece.buffer.nbytes >= end + 4 * GUARD_WORDS
            assert workspace.read_back(binding, PROBLEM).touched() == ""
            for place, where in ((piece.offset - 4, "start - word 1"), (end, "end + word 0")):
                piece.buffer.upload(np.array([1], np.uint32), place)
                assert workspace.read_back(binding, PROBLEM).touched() == where
                piece.buffer.upload(np.array([POISON], np.uint32), place)
    finally:
        workspace.close()
