"""One trial: a configuration becomes a measurement, and the measurement ends the trial."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from kernelforge.errors import MeasureError
from kernelforge.measure.bench import Bench
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.journal import Journal
from kernelforge.tune.sampler import ABANDONED

MEASUREMENT = "measurement"
_WORKER = "worker"
_ORPHAN_S = 60.0
_STATES = {
    Outcome.OK: TrialState.COMPLETE,
    Outcome.REJECTED: TrialState.PRUNED,
    Outcome.COMPILE_FAILED: TrialState.FAIL,
    Outcome.WRONG_RESULT: TrialState.FAIL,
    Outcome.TIMED_OUT: TrialState.FAIL,
    Outcome.DEVICE_LOST: TrialState.FAIL,
}


def run_trial(study: Study, trial: Trial, bench: Bench, journal: Journal) -> Measurement:
    """Measures a trial's configuration, records it, and tells the study.

    The journal comes first: a process killed in between repeats a trial rather than losing one.
    Interrupted half way, the trial is marked as never tried, and the interruption goes on.

    Args:
        study: where the trial belongs.
        trial: asked of the study; its parameters are all set.
        bench: of the study's problem.
        journal: takes the measurement.
    """
    try:
        trial.set_user_attr(_WORKER, f"{socket.gethostname()}:{os.getpid()}")
        measurement = bench.measure(trial.params, incumbent_ns(study))
        journal.append(measurement)
        trial.set_user_attr(MEASUREMENT, measurement.to_json())
    except BaseException:
        trial.set_user_attr(ABANDONED, "interrupted")
        study.tell(trial, state=TrialState.FAIL)
        raise
    state = _STATES[measurement.outcome]
    if state is TrialState.COMPLETE:
        study.tell(trial, measurement.median_ns)
    else:
        study.tell(trial, state=state)
    return measurement


def incumbent_ns(study: Study) -> float | None:
    """Time of the best trial so far; None before the first good one."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min((t.value for t in done if t.value is not None), default=None)


def measurements(trials: Sequence[FrozenTrial]) -> list[Measurement]:
    """The measurements that finished trials carry, in order of the trials."""
    found = []
    for trial in trials:
        data = trial.user_attrs.get(MEASUREMENT)
        if data is not None and ABANDONED not in trial.user_attrs:
            try:
                found.append(Measurement.from_json(data))
            except MeasureError:  # written by another version: search on without it
                continue
    return found


def release_orphans(study: Study, storage: BaseStorage) -> int:
    """Frees the configurations of trials whose process is gone; returns how many there were."""
    host, freed = socket.gethostname(), 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(trial.user_attrs.get(_WORKER, ""))
        name, _, pid = worker.rpartition(":")
        if name == host:
            gone = not _alive(int(pid))
        else:
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            gone = time.time() - began > (10 * _ORPHAN_S if worker else _ORPHAN_S)
        if gone:
            storage.set_trial_user_attr(trial._trial_id, ABANDONED, "killed")
            study.tell(trial.number, state=TrialState.FAIL)
            freed += 1
    return freed


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # this process runs one trial at a time, and that one is not begun yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def best_distinct(found: Sequence[Measurement], count: int) -> list[Measurement]:
    """The fastest `count` good measurements that are different programs, fastest first."""
    chosen: list[Measurement] = []
    for measurement in sorted((m for m in found if m.ok), key=lambda m: m.median_ns):
        if len(chosen) == count:
            break
        if all(measurement.spirv_sha256 != c.spirv_sha256 for c in chosen):
            chosen.append(measurement)
    return chosen


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
