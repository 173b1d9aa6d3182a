"""One dispatch for several: taken where the bundles have it, and where it was measured faster."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.crossover import rounding_rivals
from kernelforge_runtime.bundle.select import KernelSet, Match, Selection

Wanted = tuple[str, str, Problem]
"""A kernel that is asked for: family, precision, problem."""
LaidOut = tuple[str, str, Problem, Layouts]
"""The same, for operands that lie in memory so."""


def takes_fused(
    kernels: KernelSet,
    fused: Wanted | LaidOut,
    parts: Sequence[Wanted | LaidOut],
    otherwise: bool,
) -> bool:
    """Whether the fused kernel is used, not the separate ones.

    Medians are of a dispatch with its barrier, so that those of the parts may be added up; where a
    problem itself was not measured, its nearest one stands for it, as it does for kernels.

    Args:
        kernels: of the device.
        fused: does all in one dispatch.
        parts: do it one after another.
        otherwise: what holds where not all of them were measured.

    Raises:
        BundleError: no bundle has the fused kernel, and not all of the parts either.
    """
    whole = kernels.find(*fused)
    if whole is None:
        return False
    found = [kernels.find(*part) for part in parts]
    separate = [selection for selection in found if selection is not None]
    if len(separate) < len(found):
        return True
    if kernels.rounding == "always" and any(
        _rounds(*pair) for pair in zip(parts, separate, strict=True)
    ):
        return False
    if all(_measured(selection) for selection in (whole, *separate)):
        together = sum(selection.entry.median_ns for selection in separate)
        return whole.entry.median_ns < together
    behind = max(kernels.bundles.index(s.bundle) for s in separate)
    # A kernel tuned for this device is not given up for one that is not.
    return otherwise and kernels.bundles.index(whole.bundle) <= behind


def _measured(selection: Selection) -> bool:
    on_this_device = selection.match in (Match.EXACT, Match.NEAREST_PROBLEM)
    return on_this_device and selection.entry.median_ns > 0


def _rounds(part: Wanted | LaidOut, selection: Selection) -> bool:
    return selection.entry.family in rounding_rivals(part[0])
