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

from kernelforge.compile import compile_rendered
from kernelforge.errors import CompileError, SpaceError
from kernelforge.measure import statistics
from kernelforge.measure.measurement import ENDED, LOSSES, LostError, Measurement, Outcome
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.side_by_side import Turns
from kernelforge.render import render
from kernelforge.variant import Variant
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.errors import DeviceError, DeviceLostError, PlanError

log = logging.getLogger(__name__)

POORLY_KNOWN = 0.01
"""Relative standard error of a final median from which on the measurement says so."""


def run_finals(
    bench: Measurer,
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
        rounds: samples of each at least; more while the time of the fastest is not known.
        seconds: stop after about this long, though not before three rounds.

    Returns:
        Final measurements, the default's first; those that turned out wrong say so.
    """
    default = bench.family.variant(bench.precision, default_params)
    # By name: what an earlier process wrote knows its parameters only from the name.
    names = dict.fromkeys([default.name, *(c.variant for c in candidates)])
    seed = bench.next_seed()
    finals = [_verified(bench, name, candidates, seed) for name in names]
    modules = [module for _, module in finals if module is not None]
    fastest = min((c.median_ns for c in candidates if c.ok), default=1e6)
    timed, lost = bench.time_in_turns(modules, fastest, rounds, seconds, seed)
    return [_timed(m, timed.get(m.variant), lost.get(m.variant)) for m, _ in finals]


def _timed(start: Measurement, turns: Turns | None, lost: LostError | None) -> Measurement:
    if lost is not None:
        return as_lost(start, lost)
    if turns is None:
        return start
    error = statistics.median_error(turns.samples_ns)
    return replace(
        start,
        note=f"time known to {100 * error:.1f} % only" if error > POORLY_KNOWN else start.note,
        samples_ns=turns.samples_ns,
        median_ns=statistics.median(turns.samples_ns),
        corrected_ns=statistics.median(turns.samples_ns),
        spread_ns=statistics.spread(turns.samples_ns),
        dispatches=turns.dispatches,
        clock=turns.clock,
        cold=turns.cold,
    )


def as_lost(start: Measurement, error: LostError) -> Measurement:
    """What becomes of a finalist that ended the process it ran in, or hung it."""
    log.warning("%s was fast but is lost: %s", start.variant, error)
    return replace(
        start,
        phase="final",
        outcome=error.outcome,
        reason=str(error),
        note=ENDED if error.outcome in LOSSES else "",
        median_ns=float("nan"),
        corrected_ns=float("nan"),
    )


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
    bench: Measurer, name: str, candidates: Sequence[Measurement], seed: int
) -> tuple[Measurement, ShaderModule | None]:
    """The start of a final measurement, and its module where the result was right."""
    earlier = next((c for c in candidates if c.variant == name), None)
    if earlier is not None and not earlier.ok:  # lost in the heat
        return earlier, None
    params = bench.family.space.normalise(Variant.parse(name).values)
    blank = earlier or bench.describe(params)
    # The default may be a finalist that was never a trial: its hashes are not known yet.
    rendered = render(bench.family, bench.precision, params)
    blank = replace(
        blank,
        phase="final",
        note="",
        samples_ns=(),
        median_ns=float("nan"),
        corrected_ns=float("nan"),
        seed=seed,
        glsl_sha256=rendered.sha256,
        template_sha256=rendered.template_sha256,
    )
    try:
        module = compile_rendered(bench.family, bench.precision, params, rendered)
        found = bench.check_everywhere(module, params, seed)
    except DeviceLostError:
        raise
    except LostError as error:
        return as_lost(blank, error), None
    except CompileError as error:
        return replace(blank, outcome=Outcome.COMPILE_FAILED, reason=str(error)), None
    except (SpaceError, PlanError, DeviceError) as error:
        return replace(blank, outcome=Outcome.REJECTED, reason=str(error)), None
    blank = replace(blank, max_error=found.max_error, tolerance=found.tolerance)
    if not found.ok:
        log.warning("%s was fast but is wrong on the full problem: %s", name, found.reason)
        wrong = Outcome.WRONG_RESULT
        return replace(blank, outcome=wrong, reason=found.reason), None
    return replace(blank, outcome=Outcome.OK, reason="", spirv_sha256=module.sha256), module
