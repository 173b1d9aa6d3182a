"""The last round: the best variants and the default, verified anew and timed in turns.

A search picks the luckiest of many noisy times, and drift favours whoever was measured at a good
moment. So the best few are checked on the full problem with inputs nobody has seen, then timed
alternately in random order. Only what is faster than the default beyond noise replaces it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kernelforge.compile import compile_variant
from kernelforge.errors import CompileError, SpaceError
from kernelforge.measure import statistics
from kernelforge.measure.bench import Bench, Timer
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.verify import Verification
from kernelforge.render import render
from kernelforge.variant import Variant
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.errors import DeviceError, DeviceLostError, PlanError

log = logging.getLogger(__name__)

LEAST_ROUNDS = 3
_ROUND_NS = 30e6


def run_finals(
    bench: Bench,
    candidates: Sequence[Measurement],
    default_params: Mapping[str, Any],
    rounds: int,
    seconds: float = 4.0,
) -> list[Measurement]:
    """Measures the candidates and the default again, side by side.

    Args:
        bench: of the problem.
        candidates: the best measurements of the search, of different programs.
        default_params: the variant to beat; always takes part.
        rounds: samples of each.
        seconds: stop after about this long, though not before three rounds.

    Returns:
        Final measurements, the default's first; those that turned out wrong say so.
    """
    default = bench.family.variant(bench.precision, default_params)
    # By name: what an earlier process wrote knows its parameters only from the name.
    names = dict.fromkeys([default.name, *(c.variant for c in candidates)])
    seed = bench.next_seed()
    finals = [_verified(bench, name, candidates, seed) for name in names]
    modules = {m.variant: module for m, module in finals if module is not None}
    timers: dict[str, Timer] = {}
    try:
        for measurement, module in finals:
            if module is not None:
                timers[measurement.variant] = _timer(bench, module, candidates)
        samples = _in_turns(timers, rounds, seconds, np.random.default_rng(seed))
        count = {name: timer.dispatches for name, timer in timers.items()}
        clock = {name: timer.clock for name, timer in timers.items()}
    finally:
        for timer in timers.values():
            timer.close()
    cold = {name: bench.is_cold(module) for name, module in modules.items()}
    return [
        replace(
            m,
            samples_ns=tuple(samples[m.variant]),
            median_ns=statistics.median(samples[m.variant]),
            spread_ns=statistics.spread(samples[m.variant]),
            dispatches=count[m.variant],
            clock=clock[m.variant],
            cold=cold[m.variant],
        )
        if m.variant in samples
        else m
        for m, _ in finals
    ]


def choose(finals: Sequence[Measurement]) -> Measurement | None:
    """The winner: the fastest of the finals if it beats the default (the first) beyond noise.

    Returns:
        None where none of them gave a right result.
    """
    good = [m for m in finals if m.ok]
    if not good:
        return None
    best = min(good, key=lambda m: m.median_ns)
    default = finals[0]
    if not default.ok or best is default:
        return best
    gain = statistics.paired_ratio(best.samples_ns, default.samples_ns)
    if gain.faster:
        return best
    return replace(default, note="nothing was faster beyond noise")


def _verified(
    bench: Bench, name: str, candidates: Sequence[Measurement], seed: int
) -> tuple[Measurement, ShaderModule | None]:
    """The start of a final measurement, and its module where the result was right."""
    earlier = next((c for c in candidates if c.variant == name), None)
    params = bench.family.space.normalise(Variant.parse(name).values)
    blank = earlier or bench.describe(params)
    # The default may be a finalist that was never a trial: its hashes are not known yet.
    rendered = render(bench.family, bench.precision, params)
    blank = replace(
        blank,
        phase="final",
        note="",
        samples_ns=(),
        seed=seed,
        glsl_sha256=rendered.sha256,
        template_sha256=rendered.template_sha256,
    )
    try:
        module = compile_variant(bench.family, bench.precision, params)
        found = _checked(bench, module, params, seed)
    except DeviceLostError:
        raise
    except CompileError as error:
        return replace(blank, outcome=Outcome.COMPILE_FAILED, reason=str(error)), None
    except (SpaceError, PlanError, DeviceError) as error:
        return replace(blank, outcome=Outcome.REJECTED, reason=str(error)), None
    blank = replace(blank, max_error=found.max_error, tolerance=found.tolerance)
    if not found.ok:
        log.warning("%s was fast but is wrong on the full problem: %s", name, found.reason)
        wrong = Outcome.WRONG_RESULT
        return replace(blank, outcome=wrong, reason=found.reason, median_ns=float("nan")), None
    return replace(blank, outcome=Outcome.OK, reason="", spirv_sha256=module.sha256), module


def _checked(
    bench: Bench, module: ShaderModule, params: Mapping[str, Any], seed: int
) -> Verification:
    """On the full problem, then on the family's awkward small ones: the first that is wrong.

    A bundle serves other problems of the family with the same variant, so edges count even where
    the tuned problem has none.
    """
    found = bench.check(module, seed, bench.problem)
    for corner in bench.family.corner_problems:
        if not found.ok:
            break
        if bench.family.space.refuses(params, bench.device.info, corner) is not None:
            continue
        at_corner = bench.check(module, seed, corner)
        if not at_corner.ok:
            return replace(at_corner, reason=f"at {corner}: {at_corner.reason}")
    return found


def _timer(bench: Bench, module: ShaderModule, candidates: Sequence[Measurement]) -> Timer:
    """Every finalist repeats equally often, by the time of the fastest."""
    fastest = min((c.median_ns for c in candidates if c.ok), default=1e6)
    return bench.timer(module, bench.repetitions(module, fastest, _ROUND_NS))


def _in_turns(
    timers: Mapping[str, Timer], rounds: int, seconds: float, rng: np.random.Generator
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for timer in timers.values():
        timer.sample()  # warm-up
    spent = 0.0
    names = list(timers)
    for done in range(rounds):
        if done >= LEAST_ROUNDS and spent > seconds * 1e9:
            break
        for i in rng.permutation(len(names)):
            name = names[i]
            samples[name].append(timers[name].sample())
            spent += samples[name][-1] * timers[name].dispatches
    return samples
