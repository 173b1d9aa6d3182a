"""Who comes to the finals: the fastest of a search, after a heat where the search left it open.

A trial's time is a few samples of one moment, and what takes the drift out of it is read off other
moments. Where the device's speed jumps, both orders of the trials are wrong in their own way: by
corrected times one may stand first that the device was only thought to be slow for. So whoever is
near the front of either order runs a short heat, all in turns, and the best of that go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kernelforge.compile import compile_variant
from kernelforge.errors import CompileError
from kernelforge.measure.measurement import Measurement
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.statistics import median
from kernelforge.tune.finals import as_lost
from kernelforge.variant import Variant

log = logging.getLogger(__name__)

CLOSE = 1.1
"""Times within this of the first one's may be as good: trials are known to a few percent each."""
MOST = 3
"""An order sends so many times as many to the heat as there are finalists, at most."""
HEAT_ROUNDS, HEAT_S = 5, 1.5
"""Samples of each in a heat, and seconds after which there are no more."""


def finalists_of(bench: Measurer, found: Sequence[Measurement], count: int) -> list[Measurement]:
    """The good measurements to take to the finals, of different programs, fastest first.

    Args:
        bench: of the problem.
        found: the search's trials.
        count: how many, besides those that are lost in the heat, which say so.

    Raises:
        DeviceLostError: the device did not answer, and nothing can go on.
    """
    corrected = fastest(found, count, lambda m: m.time_ns)
    taken = fastest(found, count, lambda m: m.median_ns)
    known = {m.spirv_sha256 for m in corrected}
    chosen = [*corrected, *(m for m in taken if m.spirv_sha256 not in known)]
    return chosen if len(chosen) <= count else _heat(bench, chosen, count)


def fastest(
    found: Sequence[Measurement], count: int, time: Callable[[Measurement], float]
) -> list[Measurement]:
    """The `count` fastest that are different programs, and who is `CLOSE` to the first."""
    chosen: list[Measurement] = []
    for measurement in sorted((m for m in found if m.ok), key=time):
        near = bool(chosen) and time(measurement) <= CLOSE * time(chosen[0])
        if len(chosen) >= (MOST * count if near else count):
            break
        if all(measurement.spirv_sha256 != c.spirv_sha256 for c in chosen):
            chosen.append(measurement)
    return chosen


def _heat(bench: Measurer, chosen: Sequence[Measurement], count: int) -> list[Measurement]:
    """The `count` fastest in turns, and behind them who was lost on the way, to be told of."""
    modules = []
    for measurement in chosen:
        params = bench.family.space.normalise(Variant.parse(measurement.variant).values)
        try:
            modules.append(compile_variant(bench.family, bench.precision, params))
        except CompileError as error:  # it could be compiled when it was a trial
            log.warning("%s is left out of the finals: %s", measurement.variant, error)
    once = min(m.median_ns for m in chosen)
    timed, lost = bench.time_in_turns(modules, once, HEAT_ROUNDS, HEAT_S, bench.next_seed())
    times = {name: median(turns.samples_ns) for name, turns in timed.items()}
    ranked = sorted((m for m in chosen if m.variant in times), key=lambda m: times[m.variant])
    gone = [as_lost(m, lost[m.variant]) for m in chosen if m.variant in lost]
    return [*(ranked or [m for m in chosen if m.variant not in lost])[:count], *gone]
