"""One trial: a configuration becomes a measurement, and the measurement ends the trial."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from kernelforge.errors import MeasureError, TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.programs import original
from kernelforge.tune.journal import Journal
from kernelforge.tune.sampler import ABANDONED
from kernelforge.tune.sharing import alive, signs_of_life, turn
from kernelforge.tune.workers import is_gone, is_of_this_host, this_process

log = logging.getLogger(__name__)

MEASUREMENT = "measurement"
GOOD = 0.95
"""Share of the winner's speed from which on a search has all but found it."""
WORKER = "worker"
CLOCK = "clock"
"""By how many seconds the local time of the trial's worker was ahead of UTC."""
SESSION = "session "
_ID = "id"
ORPHAN_S = 60.0
_STATES = {Outcome.OK: TrialState.COMPLETE, Outcome.REJECTED: TrialState.PRUNED}
"""All other outcomes are failures."""
_FREED = (UpdateFinishedTrialError, ValueError)
"""What Optuna raises where a trial has ended already."""


def run_trial(
    study: Study,
    trial: Trial,
    bench: Measurer,
    journal: Journal,
    slowdown: float = 1.0,
    origins: Mapping[str, str] | None = None,
) -> Measurement:
    """Measures a trial's configuration, records it, and tells the study.

    The journal comes first: of a process killed in between, `release_orphans` finds there what the
    study lacks, so that nothing is lost and nothing measured twice.
    Interrupted half way, the trial is marked as never tried, and the interruption goes on.

    Args:
        study: where the trial belongs.
        trial: asked of the study; its parameters are all set.
        bench: of the study's problem.
        journal: takes the measurement.
        slowdown: how many times as long the device takes now as when the search began.
        origins: variant -> who suggested it, of those that the search did not find by itself.
    """
    try:
        trial.set_user_attr(CLOCK, _ahead_of_utc_s())
        trial.set_user_attr(WORKER, this_process())
        best = incumbent_ns(study)
        with alive(study._storage, trial._trial_id):
            incumbent = None if best is None else best * slowdown
            measurement = bench.measure(trial.params, incumbent)
        measurement = replace(
            measurement,
            corrected_ns=_corrected(study, measurement, slowdown),
            origin=(origins or {}).get(measurement.variant, "search"),
        )
        journal.append(measurement, _name(study, trial.number))
    except (OSError, TuneError, StorageInternalError, SQLAlchemyError):
        # What could not be written must not be written to: the next session frees the trial.
        raise
    except BaseException:
        with suppress(*_FREED):
            trial.set_user_attr(ABANDONED, "interrupted")
            study.tell(trial, state=TrialState.FAIL)
        raise
    # From here on it is done, whatever happens: the next session has it from the journal.
    try:
        trial.set_user_attr(MEASUREMENT, measurement.to_json())
        _tell(study, trial.number, measurement)
    except _FREED:
        _add_late(study, trial, measurement)
    return measurement


def _add_late(study: Study, trial: Trial, measurement: Measurement) -> None:
    """Keeps what was measured for a trial that somebody freed: this machine slept, or a clock ran.

    As a trial of its own, unless its configuration is done, or being done, once more.
    """
    with turn(study._storage, study.study_name):
        trials = study.get_trials(deepcopy=False)
        if any(t.params == trial.params and ABANDONED not in t.user_attrs for t in trials):
            log.warning("%s: was given to another worker meanwhile", measurement.variant)
            return
        state = _STATES.get(measurement.outcome, TrialState.FAIL)
        late = create_trial(
            state=state,
            value=measurement.time_ns if state is TrialState.COMPLETE else None,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={WORKER: this_process(), MEASUREMENT: measurement.to_json()},
        )
        study.add_trial(late)
    log.warning("%s: its trial was taken for a dead worker's; kept as another", measurement.variant)


def _corrected(study: Study, measurement: Measurement, slowdown: float) -> float:
    """Without drift: what was taken over from an equal program was measured when that one was."""
    name = original(measurement)
    if name != measurement.variant:
        for _, earlier in measured_trials(study.get_trials(deepcopy=False)):
            if earlier.variant == name:
                return earlier.time_ns
    return measurement.median_ns / slowdown


def _tell(study: Study, number: int, measurement: Measurement) -> None:
    state = _STATES.get(measurement.outcome, TrialState.FAIL)
    if state is TrialState.COMPLETE:
        study.tell(number, measurement.time_ns)
    else:
        study.tell(number, state=state)


def _name(study: Study, number: int) -> str:
    """A trial as the journal names it; with the study's own id, as --no-resume makes a new one."""
    return f"{study.study_name}#{study.user_attrs.get(_ID, '')}#{number}"


def incumbent_ns(study: Study) -> float | None:
    """Corrected time of the best trial so far; None before the first good one."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min((t.value for t in done if t.value is not None), default=None)


def measured_trials(trials: Sequence[FrozenTrial]) -> list[tuple[int, Measurement]]:
    """Number and measurement of every finished trial, in order."""
    found = []
    for trial in trials:
        data = trial.user_attrs.get(MEASUREMENT)
        if data is not None and ABANDONED not in trial.user_attrs:
            try:
                found.append((trial.number, Measurement.from_json(data)))
            except MeasureError:  # written by another version: search on without it
                continue
    return found


def release_orphans(study: Study, storage: BaseStorage, journal: Journal) -> int:
    """Ends trials whose process is gone: with its measurement, where it came to one.

    The configurations of the others are free again.

    Also notes that this process works on the study: one that is killed before it has put its name
    to a trial leaves no other trace.

    Args:
        study: whose trials.
        storage: that holds it.
        journal: of this process, where measurements may be that the study lacks.

    Returns:
        How many will be done again.
    """
    if _ID not in study.user_attrs:
        study.set_user_attr(_ID, uuid.uuid4().hex[:8])
    freed = 0
    sessions = [name for name in study.user_attrs if name.startswith(SESSION)]
    all_gone = bool(sessions) and all(is_gone(name.removeprefix(SESSION)) for name in sessions)
    if SESSION + this_process() not in sessions:
        study.set_user_attr(SESSION + this_process(), True)
    signs = signs_of_life(storage, study._study_id)
    known: dict[str, Measurement] | None = None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(trial.user_attrs.get(WORKER, ""))
        sign = signs.get(trial._trial_id)
        if is_of_this_host(worker):
            gone = is_gone(worker) or sign is False
        elif sign is not None:
            gone = not sign
        else:
            late = age_s(trial, trial.datetime_start) > (10 * ORPHAN_S if worker else ORPHAN_S)
            gone = is_gone(worker) or late or (not worker and all_gone)
        if not gone:
            continue
        known = journal.of_trials() if known is None else known
        measurement = known.get(_name(study, trial.number))
        with suppress(*_FREED):  # others that begin now do the same
            if measurement is not None:
                data = measurement.to_json()
                storage.set_trial_user_attr(trial._trial_id, MEASUREMENT, data)
                _tell(study, trial.number, measurement)
                continue
            storage.set_trial_user_attr(trial._trial_id, ABANDONED, "killed")
            study.tell(trial.number, state=TrialState.FAIL)
            freed += 1
    return freed


def age_s(trial: FrozenTrial, moment: datetime | None) -> float:
    """Seconds since a moment of a trial, on its worker's clock; infinite where that is not known.

    A clock that was set back, or another machine's that is ahead, makes nothing young for ever:
    what is yet to come is as old as it is far away.
    """
    if moment is None:
        return math.inf
    ahead = trial.user_attrs.get(CLOCK)
    if isinstance(ahead, int | float):
        return abs(time.time() - (moment.replace(tzinfo=UTC).timestamp() - ahead))
    return abs(time.time() - moment.timestamp())


def _ahead_of_utc_s() -> float:
    offset = datetime.now().astimezone().utcoffset()
    return offset.total_seconds() if offset is not None else 0.0


def first_good(found: Sequence[Measurement], winner: str) -> int:
    """Number, from 1, of the first measurement with 95 % of the winner's speed; 0 if it has none.

    Args:
        found: of a search, in order, with drift taken out.
        winner: name of its variant.
    """
    best = min((m.time_ns for m in found if m.ok and m.variant == winner), default=None)
    if best is None:
        return 0
    return next(i for i, m in enumerate(found, 1) if m.ok and m.time_ns <= best / GOOD)


def describe_failures(found: Sequence[Measurement]) -> str:
    """`3 WRONG_RESULT (reason of the first), ...`: what became of trials that are not OK."""
    by_outcome: dict[Outcome, list[Measurement]] = {}
    for measurement in found:
        if not measurement.ok:
            by_outcome.setdefault(measurement.outcome, []).append(measurement)
    parts = [
        f"{len(group)} {outcome.value} ({group[0].reason})" for outcome, group in by_outcome.items()
    ]
    return ", ".join(parts) or "no trial was made"
