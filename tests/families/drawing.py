"""Which variants of a family conformance takes: its default, and others drawn without bias.

Configurations are ordered by a hash of their own values, which depends on nothing else. So the same
variants are drawn on every run and, where they are possible, on every device and for every problem:
each is compiled once and used many times.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
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

RANDOM_VARIANTS = int(os.environ.get("KERNELFORGE_VARIANTS", "3"))
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
    names = _ordered(family.name, precision.name, target, keeps_subnormals(device))
    rules = family.space.problem_constraints
    possible = [p for p in names if all(rule.holds(p, target, problem) for rule in rules)]
    if not possible:
        return [], True
    default = family.default(precision, target, problem)
    others = [p for p in possible if p != default]
    return [default, *others[:RANDOM_VARIANTS]], len(others) <= RANDOM_VARIANTS


@lru_cache(maxsize=8)
def _ordered(
    name: str, precision_name: str, target: DeviceInfo, subnormals: bool
) -> list[dict[str, Any]]:
    family = family_of(name)
    in_precision, parameter, value = NEEDS_SUBNORMALS
    flushed = not subnormals and precision_name == in_precision
    valid = family.valid(precision_name, target)
    if flushed:
        valid = [params for params in valid if params.get(parameter) != value]
    return sorted(valid, key=_hash)


def _hash(params: dict[str, Any]) -> bytes:
    return hashlib.blake2b(repr(params).encode(), digest_size=8).digest()
