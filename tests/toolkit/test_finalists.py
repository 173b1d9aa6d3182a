"""Who is really fast comes to the finals, whatever one moment of the search made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kernelforge.measure.measurement import LostError, Measurement, Outcome
from kernelforge.measure.side_by_side import Turns
from kernelforge.tune.finalists import MOST, fastest, finalists_of
from kernelforge.tune.finals import choose, run_finals
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.toolkit.simulated_bench import Noise, SimulatedBench
from tests.toolkit.small_family import needs_compiler, small_family

FAMILY, PROBLEM = small_family(), Problem(M=67, K=64)
STILL = Noise(sigma=0.005, drift=0.0, outliers=0.0)
COUNT = 3

pytestmark = pytest.mark.glslang


def searched(bench: SimulatedBench) -> list[Measurement]:
    """Every configuration measured once, truly fastest first."""
    needs_compiler()
    found = [bench.measure(params) for params in FAMILY.valid(F32, bench.info, PROBLEM)]
    good = [replace(m, corrected_ns=m.median_ns) for m in found if m.ok]
    assert len(good) > 2 * COUNT
    return sorted(good, key=lambda m: bench.true_ns(m.variant))


def corrected(found: Sequence[Measurement], slowdown: float) -> list[Measurement]:
    """As if the device had been thought to be so many times as slow for the last COUNT of them."""
    wrong = [replace(m, corrected_ns=m.median_ns / slowdown) for m in found[-COUNT:]]
    return [*found[:-COUNT], *wrong]


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_correction_for_drift_keeps_nobody_out(seed: int) -> None:
    bench = SimulatedBench(FAMILY, PROBLEM, STILL, seed)
    found = searched(bench)
    best = found[0].variant
    misled = corrected(found, slowdown=4.0)
    assert best not in {m.variant for m in sorted(misled, key=lambda m: m.time_ns)[:COUNT]}
    chosen = finalists_of(bench, misled, COUNT)
    assert len(chosen) == COUNT
    assert best in {m.variant for m in chosen}
    winner = choose(run_finals(bench, chosen, FAMILY.default(F32, bench.info, PROBLEM), 5))
    assert winner is not None
    assert bench.true_ns(winner.variant) <= 1.02 * bench.true_ns(best)


def test_whoever_is_close_runs_the_heat_but_not_everyone() -> None:
    bench = SimulatedBench(FAMILY, PROBLEM, STILL, 1, spread=0.02)
    found = searched(bench)
    assert len(fastest(found, COUNT, lambda m: m.time_ns)) == min(MOST * COUNT, len(found))
    wide = SimulatedBench(FAMILY, PROBLEM, STILL, 1, spread=50.0)
    assert len(fastest(searched(wide), COUNT, lambda m: m.time_ns)) == COUNT


def test_where_the_orders_agree_on_a_few_there_is_no_heat() -> None:
    bench = SimulatedBench(FAMILY, PROBLEM, STILL, 1, spread=50.0)
    found = searched(bench)
    bench.slowdowns.clear()
    assert [m.variant for m in finalists_of(bench, found, COUNT)] == [
        m.variant for m in found[:COUNT]
    ]
    assert bench.slowdowns == []  # nothing was timed


class Losing(SimulatedBench):
    """A bench on which one variant takes its process along whenever it is timed in turns."""

    fatal = ""

    def time_in_turns(
        self,
        modules: Sequence[ShaderModule],
        fastest_ns: float,
        rounds: int,
        seconds: float,
        seed: int,
    ) -> tuple[dict[str, Turns], dict[str, LostError]]:
        left = [m for m in modules if m.name != self.fatal]
        timed, _ = super().time_in_turns(left, fastest_ns, rounds, seconds, seed)
        gone = {self.fatal: LostError(Outcome.CRASHED, "it ended its process")}
        return timed, gone if len(left) < len(modules) else {}


def test_who_is_lost_in_the_heat_is_told_of_and_not_run_again() -> None:
    bench = Losing(FAMILY, PROBLEM, STILL, 2, spread=0.02)
    found = searched(bench)
    bench.fatal = found[0].variant
    chosen = finalists_of(bench, found, COUNT)
    assert [m.ok for m in chosen] == [True] * COUNT + [False]
    finals = run_finals(bench, chosen, FAMILY.default(F32, bench.info, PROBLEM), 5)
    lost = next(m for m in finals if m.variant == bench.fatal)
    assert (lost.outcome, lost.phase) == (Outcome.CRASHED, "final")
    assert "it ended its process" in lost.reason
    winner = choose(finals)
    assert winner is not None
    assert winner.variant != bench.fatal
