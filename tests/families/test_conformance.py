"""Every family, precision, corner problem and many variants: what must hold of any kernel.

Renders, compiles, is valid SPIR-V that matches its signature, equals its oracle on every device
there is, and leaves the guards around its buffers alone. New families are picked up by their file's
name. KERNELFORGE_VARIANTS says how many random variants each problem gets; the counts are printed
at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from kernelforge.compile import (
    carried_store,
    compile_variant,
    find_compiler,
    missing_extensions,
    validate,
)
from kernelforge.errors import CompileError
from kernelforge.families import load_families
from kernelforge.family import KernelFamily
from kernelforge.measure.verify import Verifier
from kernelforge.render import render
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.spirv import check_module
from kernelforge_runtime.vk import Device
from tests.conftest import DEVICES
from tests.families import tally
from tests.families.drawing import drawn, every_family, family_of, lightened
from tests.families.running import declared

TIMEOUT_S = 300.0
"""For one variant's first run: a driver may compile it then, on a machine with other work."""

CASES = [
    pytest.param(name, precision.name, id=f"{name}-{precision}")
    for name, family in every_family().items()
    for precision in family.precisions
]
PROBLEMS = [
    pytest.param(name, precision.name, problem, id=f"{name}-{precision}-{problem}")
    for name, family in every_family().items()
    for precision in family.precisions
    for problem in family.corner_problems
]


def needs_compiler(family: KernelFamily, leave_out: Callable[[str], Any] = pytest.skip) -> None:
    if carried_store() is not None:
        return
    try:
        find_compiler()
    except CompileError as error:
        leave_out(f"no GLSL compiler: {error}")
    if missing := missing_extensions(family):
        leave_out(f"the GLSL compiler does not know {', '.join(missing)}")


@lru_cache(maxsize=256)
def valid_module(name: str, precision: str, params: tuple[tuple[str, Any], ...]) -> ShaderModule:
    """The variant's module, compiled and valid SPIR-V; kept for its family's next problem."""
    module = compile_variant(family_of(name), precision, dict(params))
    validate(module)
    return module


# Devices change fastest: what was compiled for one is at hand for the next.
@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(("name", "precision_name", "problem"), PROBLEMS)
def test_a_family_is_right_on_every_corner_problem(
    name: str, precision_name: str, problem: Problem, device: Device
) -> None:
    family = family_of(name)
    precision = family.precision(precision_name)
    place = (name, precision_name, device.info.slug, str(problem))

    def leave_out(reason: str) -> None:
        tally.skipped(*place, reason)
        pytest.skip(reason)

    needs_compiler(family, leave_out)
    variants, all_there_are = drawn(family, precision, device, problem)
    if not variants:
        leave_out(f"{device.info.name} and this compiler can run no variant of it")
    names, failures = [], []
    with Verifier(device, family, precision, problem) as verifier:
        for params in variants:
            module = valid_module(name, precision_name, tuple(params.items()))
            light = lightened(family, precision, params, len(module.spirv) // 4, device, problem)
            if light != params:
                module = valid_module(name, precision_name, tuple(light.items()))
            check_module(module, device.info)
            found = verifier.verify(module, seed=1, timeout_s=TIMEOUT_S)
            names.append(module.name)
            if not found.ok:
                failures.append(f"{module.name} at {problem}: {found.reason}")
    assert not failures, "\n".join(failures)
    tally.checked(*place, names, all_there_are)


def test_every_family_has_corner_problems() -> None:
    assert all(family.corner_problems for family in every_family().values())


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
