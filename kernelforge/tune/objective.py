"""One trial: a configuration becomes a measurement, and the measurement ends the trial."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from kernelforge.errors import MeasureError, TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.measurer import Measurer
from kernelforge.measure.programs import original
from kernelforge.tune.journal import Journal
from kernelforge.tune.sampler import ABANDONED
from kernelforge.tune.sharing import alive, silent

MEASUREMENT = "measurement"
GOOD = 0.95
"""Share of the winner's speed from which on a search has all but found it."""
WORKER = "worker"
SESSION = "session "
_ID = "id"
ORPHAN_S = 60.0
_STATES = {Outcome.OK: TrialState.COMPLETE, Outcome.REJECTED: TrialState.PRUNED}
"""All other outcomes are failures."""


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
        trial.set_user_attr(MEASUREMENT, measurement.to_json())
    except (OSError, TuneError):
        # What could not be written must not be written to: the next session frees the trial.
        raise
    except BaseException:
        trial.set_user_attr(ABANDONED, "interrupted")
        study.tell(trial, state=TrialState.FAIL)
        raise
    _tell(study, trial.number, measurement)
    return measurement


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
    host, freed = socket.gethostname(), 0
    sessions = [name for name in study.user_attrs if name.startswith(SESSION)]
    all_gone = bool(sessions) and all(is_gone(name.removeprefix(SESSION)) for name in sessions)
    if SESSION + this_process() not in sessions:
        study.set_user_attr(SESSION + this_process(), True)
    mute = silent(storage, study._study_id)
    known: dict[str, Measurement] | None = None
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = str(trial.user_attrs.get(WORKER, ""))
        if worker.rpartition(":")[0] == host:
            gone = is_gone(worker)
        else:
            began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            late = time.time() - began > (10 * ORPHAN_S if worker else ORPHAN_S)
            gone = late or (not worker and all_gone)
        if not gone and trial._trial_id not in mute:
            continue
        known = journal.of_trials() if known is None else known
        measurement = known.get(_name(study, trial.number))
        if measurement is not None:
            storage.set_trial_user_attr(trial._trial_id, MEASUREMENT, measurement.to_json())
            _tell(study, trial.number, measurement)
        else:
            storage.set_trial_user_attr(trial._trial_id, ABANDONED, "killed")
            study.tell(trial.number, state=TrialState.FAIL)
            freed += 1
    return freed


def this_process() -> str:
    """Machine and number of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_of_this_host(process: str) -> bool:
    """Whether a process, as `this_process` names it, runs on this machine."""
    return process.rpartition(":")[0] == socket.gethostname()


def is_gone(process: str) -> bool:
    """Whether a process, as `this_process` names it, is known to have ended."""
    pid = process.rpartition(":")[2]
    return is_of_this_host(process) and not _alive(int(pid))


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


def best_distinct(found: Sequence[Measurement], count: int) -> list[Measurement]:
    """The fastest `count` good measurements that are different programs, fastest first."""
    chosen: list[Measurement] = []
    for measurement in sorted((m for m in found if m.ok), key=lambda m: m.time_ns):
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
