"""Bundles in which kernels that do several ops at once are there, slower, or missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelforge.compile import buildable, compile_variant
from kernelforge.families import get_family
from kernelforge.measure.verify import verify
from kernelforge.pack import Winner, pack
from kernelforge.render import render
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, KernelSet, locate_generic, open_bundle
from kernelforge_runtime.vk import Device

Timed = tuple[str, str, Problem, int]
"""Family, precision, problem, and the time that it is said to have taken, in ns."""


def generic_without(info: DeviceInfo, families: Collection[str]) -> Bundle:
    """The generic bundle as it was before these families."""
    bundle = open_bundle(locate_generic(info).bundle_path, info)
    kept = tuple(e for e in bundle.manifest.entries if e.family not in families)
    return replace(bundle, manifest=replace(bundle.manifest, entries=kept))


def tuned(
    device: Device,
    folder: Path,
    kernels: Collection[Timed],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """A bundle of the device's own: default variants, verified, as if they had been measured.

    `changes` are parameters by family that are not as by default.
    """
    winners = []
    for name, precision, problem, ns in kernels:
        family = get_family(name)
        params = family.default(precision, buildable(device.info), problem)
        params |= (changes or {}).get(name, {})
        module = compile_variant(family, precision, params)
        checked = verify(device, family, family.precision(precision), module, problem, 1)
        assert checked.ok, checked.reason
        made = render(family, precision, params)
        winners.append(
            Winner(
                name, precision, problem, module, ns, 0, 1, ns, checked,
                made.template_sha256, made.sha256,
            )
        )  # fmt: skip
    pack(folder, device.info, winners)
    own = next(f.parent for f in folder.glob("*/manifest.json"))
    return open_bundle(own, device.info)


def kernel_set(*bundles: Bundle) -> KernelSet:
    """Best first."""
    return KernelSet(bundles)
