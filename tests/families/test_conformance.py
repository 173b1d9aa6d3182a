"""Every family, precision, corner problem and a few variants: what must hold of any kernel.

Renders, compiles, is valid SPIR-V that matches its signature, and equals its oracle on every device
there is. New families are picked up by their file's name.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from kernelforge.compile import (
    buildable,
    carried_store,
    compile_variant,
    find_compiler,
    missing_extensions,
    validate,
)
from kernelforge.errors import CompileError
from kernelforge.families import get_family, load_families
from kernelforge.family import KernelFamily
from kernelforge.measure.ceilings import COPY, FMA, READ
from kernelforge.measure.verify import Verifier
from kernelforge.render import render
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.spirv import check_module
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.vk import Device
from tests.families.running import declared, keeps_subnormals

RANDOM_VARIANTS = 3
CEILINGS = {family.name: family for family in (READ, COPY, FMA)}

# Makes f16 subnormals into float32 subnormals: wrong where those are flushed to zero. The tuner
# verifies on the device itself, so it never chooses it there.
NEEDS_SUBNORMALS = ("f16", "UNPACK", "shift")

CASES = [
    pytest.param(name, precision.name, id=f"{name}-{precision}")
    for name, family in {**load_families(), **CEILINGS}.items()
    for precision in family.precisions
]


def family_of(name: str) -> KernelFamily:
    return CEILINGS[name] if name in CEILINGS else get_family(name)


def chosen(
    family: KernelFamily, precision: DType, device: Device, problem: Problem
) -> list[dict[str, object]]:
    """The default and a few others that are possible here, the same on every run."""
    in_precision, name, value = NEEDS_SUBNORMALS
    flushed = not keeps_subnormals(device) and str(precision) == in_precision
    target = buildable(device.info)
    valid = [
        params
        for params in family.valid(precision, target, problem)
        if not (flushed and params.get(name) == value)
    ]
    if not valid:
        return []
    default = family.default(precision, target, problem)
    seed = zlib.crc32(f"{family.name} {precision} {problem}".encode())
    picks = np.random.default_rng(seed).permutation(len(valid))[:RANDOM_VARIANTS]
    return [default, *(valid[i] for i in sorted(picks) if valid[i] != default)]


def needs_compiler(family: KernelFamily) -> None:
    if carried_store() is not None:
        return
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
    if missing := missing_extensions(family):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize(("name", "precision_name"), CASES)
def test_a_family_is_right_on_every_corner_problem(
    name: str, precision_name: str, device: Device
) -> None:
    family = family_of(name)
    needs_compiler(family)
    precision = family.precision(precision_name)
    assert family.corner_problems, f"{name} declares no corner problems"
    if not family.valid(precision, buildable(device.info)):
        pytest.skip(
            f"{device.info.name} and this compiler can run no variant of {name} in {precision}"
        )
    checked, failures = 0, []
    for problem in family.corner_problems:
        with Verifier(device, family, precision, problem) as verifier:
            for params in chosen(family, precision, device, problem):
                module = compile_variant(family, precision, params)
                check_module(module, device.info)
                found = verifier.verify(module, seed=checked + 1)
                checked += 1
                if not found.ok:
                    failures.append(f"{module.name} at {problem}: {found.reason}")
    assert checked, "no corner problem has a variant that is valid here"
    assert not failures, "\n".join(failures)


@pytest.mark.glslang
@pytest.mark.parametrize(("name", "precision_name"), CASES)
def test_a_default_variant_renders_the_same_twice_and_is_valid_spirv(
    name: str, precision_name: str
) -> None:
    family = family_of(name)
    needs_compiler(family)
    params = family.space.declared_default
    assert render(family, precision_name, params).sha256 == (
        render(family, precision_name, params).sha256
    )
    module = compile_variant(family, precision_name, params)
    check_module(module, None)
    validate(module)


@pytest.mark.parametrize(("name", "precision_name"), CASES)
def test_inputs_and_oracle_have_the_shapes_of_the_signature(name: str, precision_name: str) -> None:
    family = family_of(name)
    precision = family.precision(precision_name)
    for problem in family.corner_problems:
        signature = family.signature(precision, declared(family, problem))
        given = family.inputs(problem, precision, np.random.default_rng(1))
        expected = family.oracle(problem, precision, given, dict(family.constants(problem)))
        for binding in signature.bindings:
            extent = binding.extent(problem)
            if binding.access != "write":
                assert given[binding.name].nbytes == binding.nbytes(problem), binding.name
            if binding.access != "read":
                assert expected[binding.name].size == int(np.prod(extent)), binding.name
        flops, moved = family.cost(problem, precision)
        assert flops >= 0
        assert moved > 0


def test_inputs_are_the_same_for_the_same_seed_and_differ_between_seeds() -> None:
    for name, family in load_families().items():
        problem = family.corner_problems[-1]
        precision = family.precisions[0]
        one, two, three = (
            family.inputs(problem, precision, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert all(np.array_equal(one[key], two[key], equal_nan=False) for key in one), name
        assert any(not np.array_equal(one[key], three[key]) for key in one), name
