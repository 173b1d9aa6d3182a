"""Tuning: one Optuna study per family, precision, problem and device, from default to winner."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from kernelforge.compile import buildable, find_compiler
from kernelforge.errors import CompileError, SpaceError, TuneError
from kernelforge.family import KernelFamily
from kernelforge.measure.bench import Bench
from kernelforge.measure.isolated import IsolatedBench, Patience
from kernelforge.measure.measurement import Measurement
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.supervisor import Supervisor
from kernelforge.measure.timed_problem import Effort
from kernelforge.render import render
from kernelforge.tune.budget import Budget, Deadline, share
from kernelforge.tune.every_layout import SHARE, LayoutTrials, with_every_layout
from kernelforge.tune.finalists import finalists_of
from kernelforge.tune.finals import choose, run_finals
from kernelforge.tune.journal import Journal
from kernelforge.tune.last_one import LeftError, add_missing, finals_once, present
from kernelforge.tune.objective import (
    describe_failures,
    first_good,
    measured_trials,
    release_orphans,
)
from kernelforge.tune.portfolio import Known, is_distant, members_for
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.sampler import EnumeratedSampler
from kernelforge.tune.saving import Saving, saving_of
from kernelforge.tune.search import OnProgress, Search
from kernelforge.tune.storage import explained, open_storage
from kernelforge.tune.study_file import StorageError
from kernelforge.tune.warm import Start, starts_for, won_here
from kernelforge.variant import Variant
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import DeviceLostError
from kernelforge_runtime.vk import Device

log = logging.getLogger(__name__)

NO_MORE_S = 1e-3
"""Seconds of a search that is over: it measures nothing that was not begun."""


@dataclass(frozen=True)
class Isolation:
    """In whose process variants run, and what is known to be deadly there.

    Attributes:
        supervisor: owner of the worker process.
        patience: deadlines of its work.
        avoid: measurements by the hash of SPIR-V that is not run again; grows.
    """

    supervisor: Supervisor
    patience: Patience = field(default_factory=Patience)
    avoid: dict[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True)
class TuneResult:
    """What tuning one problem gave.

    Attributes:
        family: its name.
        precision: its name.
        problem: what was tuned.
        best: the winner's final measurement: verified on the full problem, timed in turns.
        default: the default variant's final measurement; its outcome says if it could not run.
        finalists: every final measurement, the default's first.
        trials: every measurement of the search, earlier sessions included.
        space_size: number of valid configurations.
        seconds: time this session took.
        study: name of the Optuna study.
        drift: True where the default's own time moved by more than 3 % during the search.
        warm_trials: how many of the trials were of configurations given to start with.
        warm_won: whether the winner was one of them, and not the default.
        portfolio_trials: how many of the trials were of the portfolio, and of nothing before it.
        portfolio_won: whether the winner was one of these.
        good_trial: number, from 1, of the first trial that reached 95 % of the winner's speed; 0
            where the winner was measured in the finals only.
        saving: what warm start, portfolio and this run's other winners saved; None if unknown.
    """

    family: str
    precision: str
    problem: Problem
    best: Measurement
    default: Measurement
    finalists: tuple[Measurement, ...]
    trials: tuple[Measurement, ...]
    space_size: int
    seconds: float
    study: str
    drift: bool = False
    warm_trials: int = 0
    warm_won: bool = False
    portfolio_trials: int = 0
    portfolio_won: bool = False
    good_trial: int = 0
    saving: Saving | None = None

    @property
    def speedup(self) -> float:
        """How many times faster the winner is than the default; NaN where the default failed."""
        return self.default.median_ns / self.best.median_ns


@explained()
def tune_problem(
    device: Device,
    family: KernelFamily,
    precision: DType,
    problem: Problem,
    budget: Budget,
    journal: Journal,
    storage: BaseStorage | str | Path,
    on_progress: OnProgress | None = None,
    warm: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    effort: Effort | None = None,
    isolation: Isolation | None = None,
    near: Sequence[Mapping[str, Any]] = (),
    portfolio: Sequence[Mapping[str, Any]] = (),
    distant: bool = False,
    won_before: Mapping[str, Any] | None = None,
) -> TuneResult:
    """Finds the fastest right variant of a family for one problem on one device.

    Going on with a storage that holds finished trials of the same study uses them; the budget's
    trials include them.

    Args:
        device: where to measure.
        family: what to tune.
        precision: of the weights.
        problem: the dimensions.
        budget: trials, those in further layouts included, and seconds for this problem. Finals,
            and the default timed again for drift, are no trials.
        journal: takes every measurement.
        storage: Optuna's: open, or where to open it (see `tune.storage`).
        on_progress: called after each trial.
        warm: configurations to try right after the default, e.g. winners of a sibling device.
        seed: of the search.
        effort: how long each variant is timed.
        isolation: the process that variants run in; this one if None, which a variant that never
            ends or crashes takes along.
        near: configurations to try after the default and before `warm`, which do not count as
            warm: winners of this very run.
        portfolio: configurations to try after `warm`: what is fast on many devices.
        distant: whether nothing of the portfolio is of this device; it is then tried later.
        won_before: one of `warm` to try before `near`: this problem's winner on this device.

    Of the trials at most 70 % are of `near`, `warm` and `portfolio` together (see `seeded`).

    Raises:
        LeftError: other workers still search; the last one makes the finals.
        TuneError: the problem is impossible, no variant gives a right result, or the device was
            lost; what was measured is kept.
        KeyboardInterrupt: handed on; everything finished is kept.
    """
    if why := family.refuses(problem):
        raise TuneError(f"tune {family.name} at {problem}: {why}")
    started = time.monotonic()
    held = storage if isinstance(storage, BaseStorage) else open_storage(storage)
    target = buildable(device.info)
    configs = family.valid(precision, target, problem)
    try:
        default = family.default(precision, target, problem)
    except SpaceError as error:  # other problems of the run may do
        raise TuneError(f"tune {family.name} {precision} at {problem}: {error}") from error
    layouts, deadline = LayoutTrials(family, precision, configs), Deadline(budget.seconds)
    own = budget
    if budget.seconds is not None and layouts.several:
        own = replace(budget, seconds=(1 - SHARE) * budget.seconds)
    seeds = [*([won_before] if won_before else []), *near, *warm, *(() if distant else portfolio)]
    late = portfolio if distant else ()
    sampler = EnumeratedSampler(configs, [default], seeds, seed=seed, late=late)
    name = study_name(device, family, precision, problem, configs)
    study = optuna.create_study(
        storage=held, sampler=sampler, study_name=name, load_if_exists=True, direction="minimize"
    )
    suggested = {"portfolio": portfolio, "warm start": warm, "this run": near, "default": [default]}
    origins = {
        family.variant(precision, params).name: who
        for who, group in suggested.items()
        for params in group
    }
    if freed := release_orphans(study, held, journal):
        log.info("%s: %d trials of a killed process will be done again", name, freed)
    with open_bench(device, family, precision, problem, effort, isolation) as bench:
        try:
            with present(study):
                search = Search(study, sampler, bench, journal, default, own, on_progress, origins)
                kept = layouts.kept(budget.trials)
                search.run(budget.trials - kept)
                if kept:
                    search.run_layouts(layouts, deadline)
                    search.run(deadline=deadline)  # what they did not need
                finals = finals_once(
                    study, held, budget.profile, partial(_finals, search, bench, default, budget)
                )
        except DeviceLostError as error:
            raise TuneError(f"{error}; run the same command again to go on") from error
        except OSError as error:
            raise TuneError(
                f"cannot keep the study: {error.strerror or error}; free space, then run the same "
                "command again to go on"
            ) from error
        add_missing(journal, finals)
    found = [m for _, m in measured_trials(study.get_trials(deepcopy=False))]

    def names(group: Sequence[Mapping[str, Any]]) -> set[str]:
        return {family.variant(precision, params).name for params in group} - {finals[0].variant}

    warm_names = names(warm)
    portfolio_names = names(portfolio) - warm_names - names(near)
    best = choose(finals)
    if best is None:
        raise TuneError(
            f"every finalist of {family.name} {precision} at {problem} failed the check on the "
            f"full problem: {describe_failures(finals)}"
        )
    corrected = search.corrected()
    return TuneResult(
        family=family.name,
        precision=precision.name,
        problem=problem,
        best=best,
        default=finals[0],
        finalists=tuple(finals),
        trials=tuple(found),
        space_size=sampler.size,
        seconds=time.monotonic() - started,
        study=name,
        drift=search.drift.moved,
        warm_trials=len(warm_names & {m.variant for m in found}),
        warm_won=best.variant in warm_names,
        portfolio_trials=len(portfolio_names & {m.variant for m in found}),
        portfolio_won=best.variant in portfolio_names,
        good_trial=first_good(corrected, best.variant),
        saving=saving_of(corrected, best.variant),
    )


def _finals(
    search: Search, bench: Measurer, default: Mapping[str, Any], budget: Budget
) -> list[Measurement]:
    """The finals of everything that was measured by now, by whichever worker."""
    family, precision, found = bench.family, bench.precision, search.corrected()
    finalists = finalists_of(bench, found, budget.finalists)
    if not finalists:
        raise TuneError(
            f"no variant of {family.name} {precision} gives a right result at {bench.problem} on "
            f"{bench.info.name}: {describe_failures(found)}"
        )
    finalists = with_every_layout(family, precision, finalists, found)
    return run_finals(bench, finalists, default, budget.rounds, budget.finals_s)


def open_bench(
    device: Device,
    family: KernelFamily,
    precision: DType,
    problem: Problem,
    effort: Effort | None,
    isolation: Isolation | None,
) -> AbstractContextManager[Measurer]:
    """What measures variants of one problem: here, or in the process of `isolation`."""
    if isolation is None:
        return Bench(device, family, precision, problem, effort=effort)
    return IsolatedBench(
        isolation.supervisor, device.info, family, precision, problem,
        effort=effort, patience=isolation.patience, avoid=isolation.avoid,
    )  # fmt: skip


def tune_problems(
    device: Device,
    tasks: Sequence[TuneTask],
    budget: Budget,
    journal: Journal,
    storage: BaseStorage | str | Path,
    on_progress: OnProgress | None = None,
    on_result: Callable[[TuneResult], None] | None = None,
    seed: int = 0,
    isolation: Isolation | None = None,
    starts: Sequence[Start] = (),
    known: Sequence[Known] = (),
) -> list[TuneResult]:
    """Tunes several problems, the heaviest first, sharing the budget's seconds among them.

    A problem that fails is logged and left out; the others go on. So is one that other workers
    still search when this one has done all it can: the last of them has its result.

    Args:
        device: where to measure.
        tasks: what to tune.
        budget: trials per problem, and seconds in all.
        journal: takes every measurement.
        storage: as for `tune_problem`.
        on_progress: called after each trial.
        on_result: called after each problem.
        seed: of the searches.
        isolation: as for `tune_problem`.
        starts: winners of other bundles; those that fit best are tried early.
        known: a portfolio; of each problem's share of it, what covers most is tried after those.

    Raises:
        TuneError: all of them failed, or the device was lost.
        KeyboardInterrupt: handed on; everything finished is kept.
    """
    held = storage if isinstance(storage, BaseStorage) else open_storage(storage)
    deadline, target = Deadline(budget.seconds), buildable(device.info)
    ordered = sorted(tasks, key=lambda task: (-task.weight, str(task)))
    results: list[TuneResult] = []
    failure: TuneError | None = None
    left: list[TuneTask] = []
    # What is left to others is asked for once more at the end: by then they may be done.
    for i, task in enumerate(chain(ordered, left)):
        # The root: prefill's products weigh hundreds of times what decode's do, and both matter.
        seconds = share(deadline.left_s, [t.weight**0.5 for t in (*ordered, *left)[i:]])
        # Even with no time left every problem gets its default and a look around.
        own = replace(budget, seconds=None if seconds is None else max(seconds, 0.5))
        if i >= len(ordered):
            own = replace(budget, seconds=NO_MORE_S)
        try:
            result = tune_problem(
                device, task.family, task.precision, task.problem, own, journal, held,
                on_progress, warm=starts_for(starts, task, target), seed=seed,
                isolation=isolation, near=_transfer(results, task),
                portfolio=members_for(known, task, target), distant=is_distant(known, target),
                won_before=won_here(starts, task, target),
            )  # fmt: skip
        except LeftError as error:
            log.log(logging.INFO if i < len(ordered) else logging.WARNING, "%s: %s", task, error)
            if i < len(ordered):
                left.append(task)
            continue
        except TuneError as error:
            lost = isinstance(error.__cause__, DeviceLostError | OSError)
            if lost or isinstance(error, StorageError):
                raise
            log.error("%s: %s", task, error)
            failure = error
            continue
        results.append(result)
        if on_result is not None:
            on_result(result)
    if not results and failure is not None:
        raise failure
    return results


def study_name(
    device: Device,
    family: KernelFamily,
    precision: DType,
    problem: Problem,
    configs: Sequence[Mapping[str, Any]],
) -> str:
    """Name of a study: `llvmpipe/gemv/f16/M768.K768/1a2b3c4d`.

    The last part changes with the driver, a software device's processor, the compiler, the template
    and the valid configurations: times from before such a change are not comparable.
    """
    info = device.info
    template = render(family, precision, configs[0]).template_sha256 if configs else ""
    known = [info.driver_name, info.driver_info, info.driver_version, template, list(configs)]
    if info.processor:
        known.append(info.processor)
    with suppress(CompileError):  # there need be none where SPIR-V was carried here
        known.append(f"glslang {find_compiler().version}")
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
    return f"{info.slug}/{family.name}/{precision}/{problem}/{digest}"


def _transfer(results: Sequence[TuneResult], task: TuneTask) -> list[dict[str, Any]]:
    """Winners of the same family at other problems, nearest first: good places to start."""
    same = [r for r in results if r.family == task.family.name]
    same.sort(key=lambda r: task.distance(r.precision, r.problem))
    space = task.family.space
    return [space.normalise(Variant.parse(r.best.variant).values) for r in same[:2]]
