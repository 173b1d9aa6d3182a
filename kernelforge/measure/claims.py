"""Measures a bundle's winners again, to hold their claimed times to what they take now.

All kernels of one problem and the family's default take turns. What the default takes now, against
what it took when the bundle was made, tells how fast the device is today.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from kernelforge.compile import buildable, compile_variant
from kernelforge.errors import CompileError, RenderError, SpaceError
from kernelforge.families import load_families
from kernelforge.family import KernelFamily
from kernelforge.measure import statistics
from kernelforge.measure.bench import Bench
from kernelforge.measure.side_by_side import Turns
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.bundle import Bundle, Entry
from kernelforge_runtime.errors import DeviceLostError, KernelForgeError
from kernelforge_runtime.vk import Device

log = logging.getLogger(__name__)

HONEST = 0.02
"""A claim is kept where the time now differs by no more than this (relative)."""
ROUNDS = 7
SEED = 20261121


@dataclass(frozen=True)
class Claim:
    """One entry's claimed time and what it takes now. Times in ns per dispatch.

    Attributes:
        entry: of the bundle.
        now_ns: median now; NaN where it was not measured.
        spread_ns: median absolute deviation of the samples now.
        rounds: samples taken.
        default_now_ns: the default variant's median now; NaN where that is not known.
        why_not: why it was not measured; empty where it was.
    """

    entry: Entry
    now_ns: float = math.nan
    spread_ns: float = math.nan
    rounds: int = 0
    default_now_ns: float = math.nan
    why_not: str = ""

    @property
    def ratio(self) -> float:
        """Now against claimed; 1.02 is 2 % slower than claimed."""
        return self.now_ns / self.entry.median_ns if self.entry.median_ns else math.nan

    @property
    def device_ratio(self) -> float:
        """The default now against then: how much slower the device itself is today."""
        then = self.entry.default_ns
        return self.default_now_ns / then if then else math.nan

    @property
    def steady_ratio(self) -> float:
        """`ratio` with the device's own change taken out."""
        return self.ratio / self.device_ratio


def remeasure(
    bundle: Bundle,
    device: Device,
    entries: Iterable[Entry],
    seconds: float = 4.0,
    on_claim: Callable[[Claim], None] = lambda claim: None,
) -> list[Claim]:
    """Times entries of a bundle again, problem by problem.

    Args:
        bundle: opened for the device.
        device: where to measure.
        entries: those of the bundle to look at, in its order.
        seconds: for one problem, about.
        on_claim: told each claim as it is known.

    Raises:
        DeviceLostError: the device is gone.
    """
    claims = []
    families = load_families()
    for (name, _, problem), group in groupby(entries, lambda e: e.key[:3]):
        found = _of_problem(bundle, device, families.get(name), list(group), seconds)
        log.debug("%s at %s: %d claims", name, problem, len(found))
        for claim in found:
            on_claim(claim)
        claims += found
    return claims


def _of_problem(
    bundle: Bundle,
    device: Device,
    family: KernelFamily | None,
    entries: Sequence[Entry],
    seconds: float,
) -> list[Claim]:
    first = entries[0]
    if family is None or first.precision not in {p.name for p in family.precisions}:
        return [Claim(entry, why_not="this version has no such family") for entry in entries]
    measured = [entry for entry in entries if entry.median_ns]
    claims = [Claim(e, why_not="no time was claimed") for e in entries if not e.median_ns]
    if not measured:
        return claims
    precision = family.precision(first.precision)
    try:
        modules = {entry.variant: bundle.module(entry) for entry in measured}
        default = _default(device, family, first)
        if default is not None:
            modules.setdefault(default.name, default)
        fastest = min(entry.median_ns for entry in measured)
        with Bench(device, family, precision, first.problem, SEED) as bench:
            timed, _ = bench.time_in_turns(
                list(modules.values()), float(fastest), ROUNDS, seconds, SEED
            )
    except DeviceLostError:
        raise
    except KernelForgeError as error:
        why = " ".join(str(error).split())
        return [*claims, *(Claim(entry, why_not=why) for entry in measured)]
    default_now = math.nan if default is None else _median(timed[default.name])
    for entry in measured:
        samples = timed[entry.variant].samples_ns
        spread = statistics.spread(samples)
        now = statistics.median(samples)
        claims.append(Claim(entry, now, spread, len(samples), default_now))
    return claims


def _default(device: Device, family: KernelFamily, entry: Entry) -> ShaderModule | None:
    """Today's default variant at the entry's problem; None where it cannot be built here."""
    try:
        params = family.default(entry.precision, buildable(device.info), entry.problem)
        return compile_variant(family, entry.precision, params)
    except (CompileError, RenderError, SpaceError) as error:
        log.info("%s at %s: no default to compare with: %s", family.name, entry.problem, error)
        return None


def _median(turns: Turns) -> float:
    return statistics.median(turns.samples_ns)
