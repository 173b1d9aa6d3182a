"""Tunes problems twice from nothing, and times the two winners side by side.

A tuner that finds what is there finds something as fast again: the two winners may be different
variants, but one should take hardly longer than the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.compile import compile_variant
from kernelforge.measure.bench import Bench
from kernelforge.measure.statistics import Interval, median, paired_ratio
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.search import OnProgress
from kernelforge.tune.study import Isolation, TuneResult, tune_problem
from kernelforge.variant import Variant
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.vk import Device

ALIKE = 1.05
"""Two tunings agree where the slower winner takes at most this many times as long."""
ROUNDS = 15


@dataclass(frozen=True)
class Repetition:
    """Two tunings of one problem.

    Attributes:
        first: of the one tuning.
        second: of the other.
        first_ns: its winner's median, both in turns.
        second_ns: the other's.
        interval: of second over first, with its 95 % confidence.
    """

    first: TuneResult
    second: TuneResult
    first_ns: float
    second_ns: float
    interval: Interval

    @property
    def ratio(self) -> float:
        """The slower winner against the faster one, 1 or more."""
        return max(self.first_ns, self.second_ns) / min(self.first_ns, self.second_ns)

    @property
    def alike(self) -> bool:
        """Whether the two tunings agree."""
        return self.ratio <= ALIKE


def tune_twice(
    device: Device,
    task: TuneTask,
    budget: Budget,
    seeds: tuple[int, int] = (1, 2),
    on_progress: OnProgress | None = None,
    effort: Effort | None = None,
    isolation: Isolation | None = None,
) -> Repetition:
    """Tunes one problem twice, each time without warm start, journal or storage of another run.

    Args:
        device: where to measure.
        task: what to tune.
        budget: of each of the two.
        seeds: of the two searches; different ones, or the second proposes what the first did.
        on_progress: called after each trial.
        effort: how long each variant is timed.
        isolation: the process that variants run in, as for `tune_problem`.

    Raises:
        TuneError: a tuning found no winner.
    """
    results: list[TuneResult] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="kernelforge-") as name:
            folder = Path(name)
            results.append(
                tune_problem(
                    device, task.family, task.precision, task.problem, budget,
                    Journal(folder / "journal.jsonl"), folder / "studies.optuna", on_progress,
                    seed=seed, effort=effort, isolation=isolation,
                )
            )  # fmt: skip
    samples = _side_by_side(device, task, results, effort)
    one, two = (samples[r.best.variant] for r in results)
    first, second = results
    return Repetition(first, second, median(one), median(two), paired_ratio(two, one))


def _side_by_side(
    device: Device, task: TuneTask, results: Sequence[TuneResult], effort: Effort | None
) -> dict[str, Sequence[float]]:
    modules: dict[str, ShaderModule] = {}
    for result in results:
        params: dict[str, Any] = dict(Variant.parse(result.best.variant).values)
        module = compile_variant(task.family, task.precision, params)
        modules[module.name] = module
    fastest = min(r.best.median_ns for r in results)
    with Bench(device, task.family, task.precision, task.problem, effort=effort) as bench:
        timed, _ = bench.time_in_turns(list(modules.values()), fastest, ROUNDS, 8.0, 0)
    return {name: turns.samples_ns for name, turns in timed.items()}
