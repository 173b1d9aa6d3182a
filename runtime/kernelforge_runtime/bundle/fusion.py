"""One dispatch for several: taken where the bundles have it, and where it was measured faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.crossover import RIVALS, rounding_rivals, scaled_ns, scales
from kernelforge_runtime.bundle.select import KernelSet, Match, Selection, select

Wanted = tuple[str, str, Problem]
"""A kernel that is asked for: family, precision, problem."""
LaidOut = tuple[str, str, Problem, Layouts]
"""The same, for operands that lie in memory so."""


class Fused(NamedTuple):
    """A family that does in one dispatch what others do in several.

    Attributes:
        parts: those that it stands for, by its precision, problem and layouts, and the bits of the
            model's activations.
        unmeasured: whether it is taken where nothing was measured.
    """

    parts: Callable[[str, Problem, Layouts, int], list[LaidOut]]
    unmeasured: bool


def _of(problem: Problem, dims: str) -> Problem:
    return Problem(**{name: problem[name] for name in dims})


def _mix_parts(precision: str, problem: Problem, layouts: Layouts, bits: int) -> list[LaidOut]:
    return [
        ("rwkv7_gates", precision, _of(problem, "THNP"), ()),
        ("wkv7", precision, _of(problem, "THNB"), ()),
        ("rwkv7_readout", precision, _of(problem, "THN"), ()),
    ]


def _norm_parts(precision: str, problem: Problem, layouts: Layouts, bits: int) -> list[LaidOut]:
    shift = Problem(T=problem["T"], C=problem["K"], S=problem["S"], X=bits)
    return [
        ("norm_shift", "f32", shift, ()),
        ("gemv", precision, Problem(**{**problem, "X": bits}), layouts),
    ]


FUSED: dict[str, Fused] = {
    "rwkv7_mix": Fused(_mix_parts, unmeasured=True),
    # Unmeasured, it may well be slower: its workgroups repeat the norm, each for a few rows.
    "norm_gemv": Fused(_norm_parts, unmeasured=False),
}
"""By the family's name."""


def needs_figures(family: str) -> bool:
    """Whether a family is only ever taken where it was measured to be faster than others."""
    rivals = (rival for several in RIVALS.values() for rival in several)
    if family not in RIVALS and any(r.family == family and not r.rounds for r in rivals):
        return True
    return family in FUSED and not FUSED[family].unmeasured


def takes_fused(
    kernels: KernelSet,
    fused: Wanted | LaidOut,
    parts: Sequence[Wanted | LaidOut],
    otherwise: bool,
) -> bool:
    """Whether the fused kernel is used, not the separate ones.

    Medians are of a dispatch with its barrier, so that those of the parts may be added up; where a
    problem itself was not measured, its nearest one stands for it, as it does for kernels; of
    unlike numbers of tokens they say nothing of each other.

    Args:
        kernels: of the device.
        fused: does all in one dispatch.
        parts: do it one after another.
        otherwise: what holds where not all of them were measured on as many tokens.

    Raises:
        BundleError: no bundle has the fused kernel, and not all of the parts either.
    """
    whole = None if kernels.is_beaten(*fused) else kernels.find(*fused)
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
    tokens = {selection.entry.problem.get("T") for selection in (whole, *separate)}
    if len(tokens) == 1 and all(_measured(selection) for selection in (whole, *separate)):
        together = sum(_time(kernels, *pair) for pair in zip(parts, separate, strict=True))
        return whole.entry.median_ns < together
    behind = max(kernels.bundles.index(s.bundle) for s in separate)
    # A kernel tuned for this device is not given up for one that is not.
    return otherwise and kernels.bundles.index(whole.bundle) <= behind


def _time(kernels: KernelSet, part: Wanted | LaidOut, selection: Selection) -> float:
    """Ns of a part, of as many tokens as the usual family's kernel was measured on."""
    if not scales(part[0], selection.entry.family):
        return selection.entry.median_ns
    usual, problem = select(kernels.bundles, *part).entry, part[2]
    gain = scaled_ns(usual, problem) / scaled_ns(selection.entry, problem)
    return usual.median_ns / gain


def _measured(selection: Selection) -> bool:
    on_this_device = selection.match in (Match.EXACT, Match.NEAREST_PROBLEM)
    return on_this_device and selection.entry.median_ns > 0


def _rounds(part: Wanted | LaidOut, selection: Selection) -> bool:
    return selection.entry.family in rounding_rivals(part[0])
