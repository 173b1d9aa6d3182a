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
from kernelforge.tune.drift import EVERY, Drift
from kernelforge.tune.every_layout import ORIGIN, SPARE, LayoutTrials
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import (
    incumbent_ns,
    measured_trials,
    release_orphans,
    run_trial,
)
from kernelforge.tune.progress import Progress
from kernelforge.tune.sampler import EnumeratedSampler, ExhaustedError
from kernelforge.tune.sharing import ask, turn
from kernelforge_runtime.errors import DeviceLostError

log = logging.getLogger(__name__)

REFERENCES = "references"
"""Study attribute: the times of the default; see `Drift`."""
AHEAD = 2
"""Variants that are compiled while another one is measured."""

OnProgress = Callable[[Progress], None]


class Search:
    """One session of one study.

    Attributes:
        drift: how the device's speed moved, earlier sessions included.
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
        self.drift = Drift(study.user_attrs.get(REFERENCES, ()))

    def run(self) -> None:
        """Asks and measures until the budget is spent or every configuration was tried.

        Raises:
            DeviceLostError: the device is gone; the variant that did it is recorded.
        """
        bench = self._bench
        # On a processor the compiler would take the cores that are being timed.
        threads = 1 if bench.isolated and bench.info.device_type != "cpu" else 0
        deadline = Deadline(self._budget.seconds)
        limit = min(self._budget.trials, self._sampler.size)
        here = 0
        with Ahead(bench.family, bench.precision, threads) as ahead:
            while True:
                if self.drift.times_ns and here % EVERY == 0 and self._left(limit, deadline):
                    self._take_reference(len(self._study.get_trials(deepcopy=False)))
                trial, done = self._ask(limit, deadline)
                if trial is None:
                    return
                ahead.want(self._next)
                self._recall()
                slowdown = self.drift.slowdown_at(trial.number)
                last = run_trial(self._study, trial, bench, self._journal, slowdown, self._origins)
                here += 1
                if last.ok and last.variant == self._default_name and not self.drift.times_ns:
                    self._add_reference(trial.number, last)
                self._report(last, done + 1, limit, deadline)
                if last.outcome is Outcome.DEVICE_LOST and not bench.isolated:
                    raise DeviceLostError(f"{last.variant}: {last.reason}")

    def run_layouts(self, wanted: LayoutTrials, deadline: Deadline) -> None:
        """Tries the fastest in every layout, then neighbours of the best of each, while it can.

        Of neighbours a tenth of the budget's trials at the most, earlier sessions included.

        Raises:
            DeviceLostError: as `run`.
        """
        while not deadline.reached:
            trial, done = self._ask_layout(wanted)
            if trial is None:
                return
            self._recall()
            name = self._bench.family.variant(self._bench.precision, trial.params).name
            slowdown = self.drift.slowdown_at(trial.number)
            last = run_trial(
                self._study, trial, self._bench, self._journal, slowdown, {name: ORIGIN}
            )
            self._report(last, done + 1, max(self._budget.trials, done + 1), deadline)
            if last.outcome is Outcome.DEVICE_LOST and not self._bench.isolated:
                raise DeviceLostError(f"{last.variant}: {last.reason}")

    def _ask_layout(self, wanted: LayoutTrials) -> tuple[Trial | None, int]:
        """As `_ask`, for the trial that the layouts want next."""
        with turn(self._study._storage, self._study.study_name):
            trials = self._study.get_trials(deepcopy=False)
            seen = self._sampler.seen(trials)
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
        trials = measured_trials(self._study.get_trials(deepcopy=False))
        when = {m.variant: number for number, m in trials}
        return [self.drift.correct(m, when.get(original(m), number)) for number, m in trials]

    def _recall(self) -> None:
        """Tells the bench what other sessions and workers have measured meanwhile."""
        trials = self._study.get_trials(deepcopy=False)
        fresh = [t for t in trials if t.number not in self._recalled and t.state.is_finished()]
        self._recalled.update(trial.number for trial in fresh)
        self._bench.recall(m for _, m in measured_trials(fresh))

    def _next(self) -> list[dict[str, Any]]:
        trials = self._study.get_trials(deepcopy=False)
        return list(islice(self._sampler.likely_next(trials), AHEAD))

    def _report(self, last: Measurement, number: int, limit: int, deadline: Deadline) -> None:
        bench = self._bench
        progress = Progress(
            family=bench.family.name,
            precision=bench.precision.name,
            problem=bench.problem,
            number=number,
            limit=limit,
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
                log.info(
                    "%s: the device drifts: the default took %s us",
                    self._bench.problem,
                    ", ".join(f"{t / 1e3:.1f}" for t in self.drift.times_ns),
                )

    def _add_reference(self, number: int, measurement: Measurement) -> None:
        self.drift.add(number, measurement)
        self._study.set_user_attr(REFERENCES, self.drift.to_json())
