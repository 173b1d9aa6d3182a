"""Times the winners of other problems on each problem, so that a bundle may share modules.

A search tells what is fastest for its own problem; whether a neighbour's winner would be nearly as
fast there is mostly unknown. Here it is timed in turns with the problem's own winner: the ratio of
two measurements in turns holds, though the device may have become slower since the search.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.measure import statistics
from kernelforge.measure.measurement import Measurement
from kernelforge.measure.measurer import Measurer
from kernelforge.tune.budget import Deadline
from kernelforge.tune.every_layout import kind_of, signature_of
from kernelforge.tune.finals import run_finals
from kernelforge.tune.journal import Journal
from kernelforge.tune.study import TuneResult
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.errors import KernelForgeError

log = logging.getLogger(__name__)

MOST = 4
"""Winners of others that one problem and layout tries, those of most problems first."""
HOPELESS = 1.25
"""A variant that its own trial there found this many times slower is not timed again."""
ROUNDS = 5
SECONDS = 2.0
"""The least of one problem: rounds, and about how long they may take."""
PHASE = "cross"

MakeBench = Callable[[TuneResult], AbstractContextManager[Measurer]]


def cross(
    results: Sequence[TuneResult],
    family_of: Callable[[str], KernelFamily],
    info: DeviceInfo,
    bench_for: MakeBench,
    journal: Journal,
    seconds: float | None,
) -> list[TuneResult]:
    """Adds to each result's finalists the winners of its family that may serve it as well.

    Args:
        results: of one run.
        family_of: the family of a name.
        info: of the device, without what the compiler cannot build.
        bench_for: opens a bench of a result's problem.
        journal: takes every measurement.
        seconds: stop after about this long; None for no limit.

    Returns:
        The results, in their order; those that were not reached are as they were.
    """
    deadline = Deadline(seconds)
    found = list(results)
    # There may not be time for all: first those whose own search came off worst.
    gains = promises(results, family_of)
    for place in sorted(range(len(found)), key=lambda i: -gains[i]):
        result = found[place]
        family = family_of(result.family)
        wanted = [] if deadline.reached else missing(result, results, family, info)
        if not wanted:
            continue
        try:
            with bench_for(result) as bench:
                added = _in_turns(bench, result, family, wanted)
        except KernelForgeError as error:  # the winners that there are remain good
            log.warning("%s %s: not compared with others: %s", family.name, result.problem, error)
            continue
        for measurement in added:
            journal.append(measurement)
        # One that is faster beyond noise is what this problem's own search missed.
        best = min((m for m in (result.best, *added) if m.ok), key=lambda m: m.median_ns)
        found[place] = replace(result, best=best, finalists=(*result.finalists, *added))
    return found


def promises(
    results: Sequence[TuneResult], family_of: Callable[[str], KernelFamily]
) -> list[float]:
    """How many times as fast the winners of other problems may be, of the layout most to gain.

    One number per result, 1 where nothing is to be gained. What another problem's winner would take
    is guessed from what both cost: a search that ran out of time may have found next to nothing of
    a layout that the model needs all the same.
    """
    known = []
    for result in results:
        family = family_of(result.family)
        cost = family.cost(result.problem, family.precision(result.precision))
        known.append(
            ((result.family, result.precision), cost, _times_of_each_layout(result, family))
        )
    gains = []
    for what, here, own in known:
        gain = 1.0
        for other, there, times in known:
            larger = max((a / b for a, b in zip(here, there, strict=True) if b > 0), default=1.0)
            for kind in own.keys() & times.keys() if other == what and larger > 0 else ():
                if times[kind] > 0:
                    gain = max(gain, own[kind] / (times[kind] * larger))
        gains.append(gain)
    return gains


def missing(
    result: TuneResult, results: Sequence[TuneResult], family: KernelFamily, info: DeviceInfo
) -> list[str]:
    """Names of winners of the family's other problems that were not timed in turns here.

    Those that cannot run here are left out, and those that a trial found clearly slower; of each
    layout only as many as `MOST`, those first that won most often.
    """
    precision = family.precision(result.precision)
    alike = [r for r in results if (r.family, r.precision) == (result.family, result.precision)]
    wins: dict[str, int] = {}
    for other in alike:
        for name in {m.variant for m in _best_of_each_layout(other, family)}:
            wins[name] = wins.get(name, 0) + 1
    known = {m.variant for m in result.finalists}
    own = {
        kind_of(signature_of(family, precision, m)): m for m in _best_of_each_layout(result, family)
    }
    slow = {
        m.variant
        for m in result.trials
        if m.ok and (mine := own.get(kind_of(signature_of(family, precision, m)))) is not None
        and m.time_ns > HOPELESS * _trial_ns(result, mine)
    }  # fmt: skip
    counts: dict[Any, int] = {}
    found = []
    for name in sorted(wins, key=lambda n: (-wins[n], n)):
        params = family.space.normalise(Variant.parse(name).values)
        kind = kind_of(family.signature(precision, params))
        if name in known or name in slow or kind not in own:
            continue
        if family.space.refuses(params, info, result.problem) is not None:
            continue
        if counts.setdefault(kind, 0) < MOST:
            counts[kind] += 1
            found.append(name)
    return found


def _best_of_each_layout(result: TuneResult, family: KernelFamily) -> list[Measurement]:
    precision = family.precision(result.precision)
    best: dict[Any, Measurement] = {}
    chosen = [result.best, *sorted(result.finalists, key=lambda m: m.median_ns)]
    for measurement in (m for m in chosen if m.ok):
        best.setdefault(kind_of(signature_of(family, precision, measurement)), measurement)
    return list(best.values())


def _times_of_each_layout(result: TuneResult, family: KernelFamily) -> dict[Any, float]:
    precision = family.precision(result.precision)
    return {
        kind_of(signature_of(family, precision, m)): m.median_ns
        for m in _best_of_each_layout(result, family)
    }


def _trial_ns(result: TuneResult, winner: Measurement) -> float:
    """What the winner took as a trial: comparable with other trials, as its final time is not."""
    times = [m.time_ns for m in result.trials if m.ok and m.variant == winner.variant]
    return min(times, default=winner.median_ns)


def _in_turns(
    bench: Measurer, result: TuneResult, family: KernelFamily, wanted: Sequence[str]
) -> list[Measurement]:
    """The wanted ones' measurements, on the scale of the winner's final time."""
    blanks = []
    for name in wanted:
        params = family.space.normalise(Variant.parse(name).values)
        # The run is as long as the winner's, whatever these take.
        blanks.append(replace(bench.describe(params), median_ns=result.best.median_ns))
    winner = family.space.normalise(Variant.parse(result.best.variant).values)
    first, *others = run_finals(bench, blanks, winner, ROUNDS, SECONDS)
    if not first.ok:
        return []
    found = []
    for other in others:
        if other.ok:
            compared = statistics.paired_ratio(other.samples_ns, first.samples_ns)
            # Faster within noise is as fast.
            ratio = compared.ratio if compared.faster else max(compared.ratio, 1.0)
            scaled = ratio * result.best.median_ns
            other = replace(other, median_ns=scaled, corrected_ns=scaled)
        found.append(replace(other, phase=PHASE))
    return found
