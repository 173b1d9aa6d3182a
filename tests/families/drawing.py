"""Which variants of a family conformance takes: its default, and others drawn without bias.

Configurations are ordered by a hash of their own values, which depends on nothing else. So the same
variants are drawn on every run and, where they are possible, on every device and for every problem:
each is compiled once and used many times.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from kernelforge.compile import buildable
from kernelforge.families import get_family, load_families
from kernelforge.family import KernelFamily
from kernelforge.measure.ceilings import COPY, FMA, READ
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.vk import Device
from tests.families.running import keeps_subnormals

RANDOM_VARIANTS = int(os.environ.get("KERNELFORGE_VARIANTS", "2"))
"""Besides the default; `make conformance` takes 20."""
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
    possible = _possible(family, precision, target, problem, flushed)
    first = next(possible, None)
    if first is None:
        return [], True
    default = family.default(precision, target, problem)
    others = (params for params in chain([first], possible) if params != default)
    found = list(islice(others, RANDOM_VARIANTS))
    return [default, *found], next(others, None) is None


def _possible(
    family: KernelFamily, precision: DType, target: DeviceInfo, problem: Problem, flushed: bool
) -> Iterator[dict[str, Any]]:
    """In order; each is asked about only when it is its turn, as most spaces are large."""
    in_precision, name, value = NEEDS_SUBNORMALS
    rules = family.space.problem_constraints
    for params in _ordered(family.name, target):
        if not all(rule.holds(params, target, problem) for rule in rules):
            continue
        if flushed and precision.name == in_precision and params.get(name) == value:
            continue
        if family.matters(precision, params) and family.fits(precision, params, target) is None:
            yield params


@lru_cache(maxsize=4)
def _ordered(name: str, target: DeviceInfo) -> list[dict[str, Any]]:
    return sorted(family_of(name).space.valid(target), key=_hash)


def _hash(params: dict[str, Any]) -> bytes:
    return hashlib.blake2b(repr(params).encode(), digest_size=8).digest()
