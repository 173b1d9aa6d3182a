"""The careful measurement of a few variants: checked on the full problem, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernelforge.measure import statistics
from kernelforge.measure.timed_problem import TimedProblem, Timer
from kernelforge.measure.verify import Verification
from kernelforge_runtime.abi.module import ShaderModule

LEAST_ROUNDS = 3
FEW, MOST_ROUNDS = 15, 500
KNOWN = 0.006
"""Relative standard error of the fastest one's median at which no more rounds are needed. A claimed
time is then within 2 % of the true one in 95 of 100 cases, the luck of having been chosen as the
fastest included: `tests/toolkit/test_honest_winner.py` holds it to that."""
_ROUND_NS = 30e6


@dataclass(frozen=True)
class Turns:
    """One variant's share of a measurement in turns.

    Attributes:
        samples_ns: one sample per round, ns per dispatch.
        dispatches: dispatches per sample.
        clock: as in `Measurement`.
        cold: as in `Measurement`.
    """

    samples_ns: tuple[float, ...]
    dispatches: int
    clock: str
    cold: bool


def check_everywhere(
    at: TimedProblem, module: ShaderModule, params: Mapping[str, Any], seed: int
) -> Verification:
    """On the full problem, then on the family's awkward small ones: the first that is wrong.

    A bundle serves other problems of the family with the same variant, so edges count even where
    the tuned problem has none.

    Raises:
        DeviceLostError: the device did not answer in time.
    """
    found = at.check(module, seed, at.problem)
    for corner in at.family.corner_problems:
        if not found.ok:
            break
        if at.family.space.refuses(params, at.info, corner) is not None:
            continue
        at_corner = at.check(module, seed, corner)
        if not at_corner.ok:
            return replace(at_corner, reason=f"at {corner}: {at_corner.reason}")
    return found


def time_in_turns(
    at: TimedProblem,
    modules: Sequence[ShaderModule],
    fastest_ns: float,
    rounds: int,
    seconds: float,
    seed: int,
    on_turn: Callable[[str], None] = lambda name: None,
) -> dict[str, Turns]:
    """Times modules alternately, in a new random order each round.

    Args:
        at: the problem.
        modules: what to time, by distinct names.
        fastest_ns: time of the fastest of them; every one repeats equally often, by this.
        rounds: samples of each at least; more, up to MOST_ROUNDS, until the time of the fastest is
            KNOWN.
        seconds: stop after about this long, though not before three rounds.
        seed: of the order.
        on_turn: told the name of each module before it runs.

    Raises:
        DeviceLostError: the device did not answer in time.
    """
    timers: dict[str, Timer] = {}
    try:
        for module in modules:
            on_turn(module.name)
            repeat = at.repetitions(module, fastest_ns, _ROUND_NS)
            timers[module.name] = at.timer(module, repeat)
            timers[module.name].sample()  # warm-up
        samples = _in_turns(timers, rounds, seconds, np.random.default_rng(seed), on_turn)
        return {
            m.name: Turns(
                tuple(samples[m.name]),
                timers[m.name].dispatches,
                timers[m.name].clock,
                at.is_cold(m),
            )
            for m in modules
        }
    finally:
        for timer in timers.values():
            timer.close()


def _in_turns(
    timers: Mapping[str, Timer],
    rounds: int,
    seconds: float,
    rng: np.random.Generator,
    on_turn: Callable[[str], None],
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in timers}
    spent = 0.0
    names = list(timers)
    for done in range(max(rounds, MOST_ROUNDS)):
        if done >= LEAST_ROUNDS and spent > seconds * 1e9:
            break
        # Of many rounds one more changes little: to ask after each would cost more than it saves.
        if done >= rounds and done % (1 + done // 25) == 0 and _fastest_known(samples):
            break
        for i in rng.permutation(len(names)):
            name = names[i]
            on_turn(name)
            samples[name].append(timers[name].sample())
            spent += samples[name][-1] * timers[name].dispatches
    return samples


def _fastest_known(samples: Mapping[str, Sequence[float]]) -> bool:
    """Whether the median of the fastest variant would hardly move with more samples."""
    fastest = min(samples.values(), key=statistics.median, default=())
    # The spread of a few samples may be small by luck.
    enough = KNOWN if len(fastest) >= FEW else KNOWN / 2
    return not fastest or statistics.median_error(fastest) <= enough
