"""The loop of one study: ask, measure, tell, until the budget is spent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from optuna.study import Study
from optuna.trial import Trial

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.programs import original
from kernelforge.tune.ahead import Ahead
from kernelforge.tune.budget import Budget, Deadline
from kernelforge.tune.drift import EVERY, SharedDrift
from kernelforge.tune.every_layout import ORIGIN, SPARE, LayoutTrials
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import (
    WORKER,
    incumbent_ns,
    measured_trials,
    release_orphans,
    run_trial,
)
from kernelforge.tune.progress import Progress
from kernelforge.tune.sampler import EnumeratedSampler, ExhaustedError
from kernelforge.tune.sharing import ask, turn
from kernelforge.tune.workers import this_process
from kernelforge_runtime.errors import DeviceLostError

log = logging.getLogger(__name__)

AHEAD = 2
"""Variants that are compiled while another one is measured."""

OnProgress = Callable[[Progress], None]


class Search:
    """One session of one study.

    Attributes:
        drift: how the speed of the devices moved, those of earlier sessions and of other workers
            included, as it was known when this last looked.
    """

    def __init__(
        self,
        study: Study,
        sampler: EnumeratedSampler,
        bench: Measurer,
        journal: Journal,
        default: Mapping[str, Any],
        budget: Budget,
        on_progress: OnProgress | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self._origins = origins
        # However little time there is: nobody wants the default where somebody knew better.
        self._least = 2 if origins and len(origins) > 1 else 1
        self._study, self._sampler, self._bench = study, sampler, bench
        self._journal, self._default, self._budget = journal, default, budget
        self._on_progress = on_progress
        self._default_name = bench.family.variant(bench.precision, default).name
        self._recalled: set[int] = set()
        self._me, self._next_reference = this_process(), 0
        self.drift = SharedDrift(study.user_attrs)

    def run(self, trials: int | None = None, deadline: Deadline | None = None) -> None:
        """Asks and measures until the budget is spent or every configuration was tried.

        Args:
            trials: of the study, at most; those of the budget if None.
            deadline: to stop by; that of the budget, from now on, if None.

        Raises:
            DeviceLostError: the device is gone; the variant that did it is recorded.
        """
        bench = self._bench
        # On a processor the compiler would take the cores that are being timed.
        threads = 1 if bench.isolated and bench.info.device_type != "cpu" else 0
        deadline = deadline or Deadline(self._budget.seconds)
        limit = min(self._budget.trials if trials is None else trials, self._sampler.size)
        here = 0
        with Ahead(bench.family, bench.precision, threads) as ahead:
            while True:
                self.drift = SharedDrift(self._study.user_attrs)
                # As soon as there is one to hold it against, be it another worker's.
                due = self.drift.first is not None and here >= self._next_reference
                if due and self._left(limit, deadline):
                    self._next_reference = here + EVERY
                    self._take_reference(len(self._study.get_trials(deepcopy=False)))
                trial, done = self._ask(limit, deadline)
                if trial is None:
                    return
                ahead.want(self._next)
                self._recall()
                slowdown = self.drift.of(self._me).slowdown_at(trial.number)
                last = run_trial(self._study, trial, bench, self._journal, slowdown, self._origins)
                if last.ok and last.variant == self._default_name and self.drift.first is None:
                    self._add_reference(trial.number, last)
                    self._next_reference = here + EVERY
                here += 1
                self._report(last, done + 1, deadline)
                if last.outcome is Outcome.DEVICE_LOST and not bench.isolated:
                    raise DeviceLostError(f"{last.variant}: {last.reason}")

    def run_layouts(self, wanted: LayoutTrials, deadline: Deadline) -> None:
        """Tries the fastest in every layout, then neighbours of the best of each, while it can.

        Of neighbours a tenth of the budget's trials at the most, earlier sessions included; all in
        all no more trials than the budget has.

        Raises:
            DeviceLostError: as `run`.
        """
        while not deadline.reached:
            trial, done = self._ask_layout(wanted)
            if trial is None:
                return
            self._recall()
            name = self._bench.family.variant(self._bench.precision, trial.params).name
            slowdown = self.drift.of(self._me).slowdown_at(trial.number)
            last = run_trial(
                self._study, trial, self._bench, self._journal, slowdown, {name: ORIGIN}
            )
            self._report(last, done + 1, deadline)
            if last.outcome is Outcome.DEVICE_LOST and not self._bench.isolated:
                raise DeviceLostError(f"{last.variant}: {last.reason}")

    def _ask_layout(self, wanted: LayoutTrials) -> tuple[Trial | None, int]:
        """As `_ask`, for the trial that the layouts want next."""
        with turn(self._study._storage, self._study.study_name):
            trials = self._study.get_trials(deepcopy=False)
            seen = self._sampler.seen(trials)
            if len(seen) >= self._budget.trials:
                return None, len(seen)
            used = sum(m.origin == ORIGIN for _, m in measured_trials(trials))
            spare = self._budget.trials // SPARE
            index = wanted.missing(seen) if used < wanted.most + spare else None
            if index is None and used < wanted.others + spare:
                index = wanted.neighbour(seen)
            if index is None:
                return None, len(seen)
            with self._sampler.given(index):
                return ask(self._study, self._sampler.space), len(seen)

    def _left(self, limit: int, deadline: Deadline) -> bool:
        done = len(self._sampler.seen(self._study.get_trials(deepcopy=False)))
        return done < limit and not (deadline.reached and done >= self._least)

    def _ask(self, limit: int, deadline: Deadline) -> tuple[Trial | None, int]:
        """The next trial, None if there is to be none, and how many there were before it.

        Whoever finds nothing left to do looks once more for trials of workers that died.
        """
        storage = self._study._storage
        with turn(storage, self._study.study_name):
            for _ in range(2):
                done = len(self._sampler.seen(self._study.get_trials(deepcopy=False)))
                if deadline.reached and done >= self._least:
                    return None, done
                if done < limit:
                    try:
                        return ask(self._study, self._sampler.space), done
                    except ExhaustedError:
                        pass
                if not release_orphans(self._study, storage, self._journal):
                    break
        return None, done

    def corrected(self) -> list[Measurement]:
        """Every measurement of the study, with drift taken out by all references there are."""
        self.drift = SharedDrift(self._study.user_attrs)
        trials = self._study.get_trials(deepcopy=False)
        who = {trial.number: str(trial.user_attrs.get(WORKER, "")) for trial in trials}
        measured = measured_trials(trials)
        when = {m.variant: number for number, m in measured}
        found = []
        for number, measurement in measured:
            at = when.get(original(measurement), number)
            found.append(self.drift.of(who[at]).correct(measurement, at))
        return found

    def _recall(self) -> None:
        """Tells the bench what other sessions and workers have measured meanwhile."""
        trials = self._study.get_trials(deepcopy=False)
        fresh = [t for t in trials if t.number not in self._recalled and t.state.is_finished()]
        self._recalled.update(trial.number for trial in fresh)
        self._bench.recall(m for _, m in measured_trials(fresh))

    def _next(self) -> list[dict[str, Any]]:
        trials = self._study.get_trials(deepcopy=False)
        return list(islice(self._sampler.likely_next(trials), AHEAD))

    def _report(self, last: Measurement, number: int, deadline: Deadline) -> None:
        bench = self._bench
        progress = Progress(
            family=bench.family.name,
            precision=bench.precision.name,
            problem=bench.problem,
            number=number,
            limit=min(self._budget.trials, self._sampler.size),
            last=last,
            best_ns=incumbent_ns(self._study),
            cost=bench.family.cost(bench.problem, bench.precision),
            left_s=deadline.left_s,
        )
        log.info("%s", progress.line())
        if self._on_progress is not None:
            self._on_progress(progress)

    def _take_reference(self, number: int) -> None:
        again = replace(self._bench.measure_again(self._default), phase="drift")
        self._journal.append(again)
        if again.ok:
            self._add_reference(number, again)
            if self.drift.moved:
                times = self.drift.of(self._me).times_ns
                log.info(
                    "%s: the device drifts: the default took %s us",
                    self._bench.problem,
                    ", ".join(f"{t / 1e3:.1f}" for t in times),
                )

    def _add_reference(self, number: int, measurement: Measurement) -> None:
        for name, value in self.drift.with_one(self._me, number, measurement).items():
            self._study.set_user_attr(name, value)
        self.drift = SharedDrift(self._study.user_attrs)
