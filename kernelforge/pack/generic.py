"""The generic bundle: each family's default variant for a device that is not known.

It is not tuned. Its variants stay within what every Vulkan 1.2 device offers, and each is checked
against its oracle on every device at hand before it is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kernelforge.compile import compile_variant
from kernelforge.errors import PackError, SpaceError
from kernelforge.families import load_families
from kernelforge.family import KernelFamily
from kernelforge.measure.verify import Verification, verify
from kernelforge.pack.winners import Winner
from kernelforge.render import render
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.fusion import needs_figures
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.vk import Device

SEED = 20240229


def generic_winners(
    devices: Sequence[Device], progress: Callable[[str], None] = lambda text: None
) -> list[Winner]:
    """One winner per family, precision and default problem, for `pack(..., GENERIC, ...)`.

    Families that require an extension, or a feature that not every device has, are left out, and
    those that are only taken where they were measured to be faster: here nothing was measured.

    Args:
        devices: open devices to verify on, at least one.
        progress: called with each variant's name.

    Raises:
        PackError: there is no device, or a default variant is wrong on one of them.
    """
    if not devices:
        raise PackError("the generic bundle needs a device to be verified on; found none")
    winners = []
    for family in load_families().values():
        if family.requires:  # not for every device, nor for every compiler
            continue
        if needs_figures(family.name):
            continue
        for precision in family.precisions:
            if _needs_more(family, precision):
                continue
            for problem in family.default_problems:
                winners.append(_winner(family, precision, problem, devices))
                progress(f"{winners[-1].module.name} {problem}")
    return winners


def _needs_more(family: KernelFamily, precision: DType) -> bool:
    """Whether every variant of it has a feature that the generic device lacks."""
    try:
        family.default(precision, GENERIC, family.default_problems[0])
    except SpaceError:
        return True
    return False


def _winner(
    family: KernelFamily, precision: DType, problem: Problem, devices: Sequence[Device]
) -> Winner:
    params = family.default(precision, GENERIC, problem)
    module = compile_variant(family, precision, params)
    rendered = render(family, precision, params)
    # The corner problems that these very parameters serve: small, odd, and where errors hide.
    corners = [p for p in family.corner_problems if module.signature.serves(p)]
    checked: list[Verification] = []
    for device in devices:
        for corner in corners:
            checked.append(verify(device, family, precision, module, corner, SEED))
            if not checked[-1].ok:
                why = checked[-1].reason
                raise PackError(f"{module.name} is wrong on {device.info.name} for {corner}: {why}")
    return Winner(
        family=family.name,
        precision=precision.name,
        problem=problem,
        module=module,
        median_ns=0,
        spread_ns=0,
        trials=0,
        default_ns=0,
        verification=max(checked, key=lambda c: c.max_error),
        template_sha256=rendered.template_sha256,
        glsl_sha256=rendered.sha256,
    )
