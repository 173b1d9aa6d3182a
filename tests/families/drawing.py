"""Which variants of a family conformance takes: its default, and others drawn without bias.

A draw goes through the parameters in turn and tries each one's values in an order by a hash of the
family's name, the draw's number and the value; where no value is possible it turns back. So the
same variants are drawn on every run and, where they are possible, on every device and for every
problem: each is compiled once and used many times. The space is not enumerated, which for a large
one takes seconds each time, unless draws find too little.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from kernelforge.compile import buildable
from kernelforge.errors import SpaceError
from kernelforge.families import get_family, load_families
from kernelforge.family import KernelFamily
from kernelforge.measure.ceilings import COPY, FMA, READ
from kernelforge.partial import NotYetError, Partial
from kernelforge.space import Space
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.vk import Device
from tests.families.running import keeps_subnormals

RANDOM_VARIANTS = int(os.environ.get("KERNELFORGE_VARIANTS", "1"))
"""Besides the default; `make conformance` takes 20."""
DRAWS = max(50, 3 * RANDOM_VARIANTS)
"""Before a space is enumerated, for what they did not find."""
MOST_STEPS = 2_000
THOROUGH = 5
"""With so many random variants every one is compiled as it is; with fewer see `lightened`."""
HEAVY_WORDS = 3_500
"""Of a module whose accesses are checked: beyond it the older llvmpipe takes 2 to 20 s for one."""
CEILINGS = {family.name: family for family in (READ, COPY, FMA)}

# Makes f16 subnormals into float32 subnormals: wrong where those are flushed to zero. The tuner
# verifies on the device itself, so it never chooses it there.
NEEDS_SUBNORMALS = ("f16", "UNPACK", "shift")


def every_family() -> dict[str, KernelFamily]:
    """By name: those of models, and those that measure a device's ceilings."""
    return {**load_families(), **CEILINGS}


def family_of(name: str) -> KernelFamily:
    return CEILINGS[name] if name in CEILINGS else get_family(name)


def drawn(
    family: KernelFamily, precision: DType, device: Device, problem: Problem
) -> tuple[list[dict[str, Any]], bool]:
    """The default and RANDOM_VARIANTS others that are possible here, and whether these are all."""
    target = buildable(device.info)
    flushed = not keeps_subnormals(device)
    try:
        default = family.default(precision, target, problem)
    except SpaceError:
        return [], True
    possible = _possible(family, precision, target, problem, flushed)
    others = (params for params in possible if params != default)
    found = list(islice(others, RANDOM_VARIANTS))
    return [default, *found], next(others, None) is None


def lightened(
    family: KernelFamily,
    precision: DType,
    params: dict[str, Any],
    words: int,
    device: Device,
    problem: Problem,
) -> dict[str, Any]:
    """The same variant by address, where a test run has no time for its module as it is.

    By address the older llvmpipe compiles it in a quarter of the time. The variant as it is runs
    on all other devices of the run, on llvmpipe of Mesa 26 too, and in `make conformance`.

    Args:
        words: length of the module as it is.
    """
    other = {**params, "ADDRESS": True}
    old = device.info.slug == "llvmpipe" and device.info.driver_info.startswith("Mesa 25.")
    if not old or RANDOM_VARIANTS >= THOROUGH or words <= HEAVY_WORDS:
        return params
    if params.get("ADDRESS") is not False or family.fits(precision, other, device.info) is not None:
        return params
    return params if family.space.refuses(other, device.info, problem) else other


def _possible(
    family: KernelFamily, precision: DType, target: DeviceInfo, problem: Problem, flushed: bool
) -> Iterator[dict[str, Any]]:
    """Each once, in order; asked about only when it is its turn."""
    in_precision, name, value = NEEDS_SUBNORMALS
    asked: set[tuple[Any, ...]] = set()
    for params in chain(_draws(family, target, problem), _rest(family, target, problem)):
        if tuple(params.values()) in asked:
            continue
        asked.add(tuple(params.values()))
        if flushed and precision.name == in_precision and params.get(name) == value:
            continue
        if family.matters(precision, params) and family.fits(precision, params, target) is None:
            yield params


def _draws(family: KernelFamily, target: DeviceInfo, problem: Problem) -> Iterator[dict[str, Any]]:
    """A possible configuration for each of the first DRAWS numbers, some more than once."""
    space = family.space
    rules = [(0, rule, (target,)) for rule in space.constraints]
    at_problem = [(0, rule, (target, problem)) for rule in space.problem_constraints]
    for number in range(DRAWS):
        found = _draw(f"{family.name} {number}", space, target, [*rules, *at_problem])
        if found is not None:
            yield found


def _draw(
    seed: str, space: Space, target: DeviceInfo, rules: list[tuple[int, Any, tuple[Any, ...]]]
) -> dict[str, Any] | None:
    """Depth first to one configuration; at each parameter values are tried in an order by seed.

    Rules are asked as soon as they can answer, as `Space.valid` does.

    Returns:
        None where MOST_STEPS do not lead to one.
    """
    levels = {name: i for i, name in enumerate(space.names)}
    values: list[Any] = []
    partial = Partial(space.names, values)
    steps = 0

    def descend(level: int, rules: list[tuple[int, Any, tuple[Any, ...]]]) -> bool:
        nonlocal steps
        steps += 1
        later = []
        for due, rule, context in rules:
            if due > level:
                later.append((due, rule, context))
                continue
            try:
                if not rule.holds(partial, *context):
                    return False
            except NotYetError as error:
                later.append((levels[error.name] + 1, rule, context))
        if level == len(space.choices):
            return True
        choice = space.choices[level]
        for value in sorted(choice.values, key=lambda v: _hash(f"{seed} {choice.name} {v}")):
            if choice.missing(value, target) or steps > MOST_STEPS:
                continue
            values.append(value)
            if descend(level + 1, later):
                return True
            values.pop()
        return False

    return dict(zip(space.names, values, strict=True)) if descend(0, rules) else None


def _rest(family: KernelFamily, target: DeviceInfo, problem: Problem) -> Iterator[dict[str, Any]]:
    """Every possible configuration, those that draws found among them."""
    rules = family.space.problem_constraints
    for params in _ordered(family.name, target):
        if all(rule.holds(params, target, problem) for rule in rules):
            yield params


@lru_cache(maxsize=4)
def _ordered(name: str, target: DeviceInfo) -> list[dict[str, Any]]:
    return sorted(family_of(name).space.valid(target), key=lambda params: _hash(repr(params)))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
