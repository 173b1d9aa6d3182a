"""Finals of a study that workers share: once, by whoever ends last, with everybody's trials.

A worker whose search is over while others still measure leaves the study to them. The last one
makes the finals and keeps them with the study, where the others find them; so does a run that is
resumed with nothing left to search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kernelforge.errors import MeasureError, TuneError
from kernelforge.measure.measurement import Measurement
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import (
    ORPHAN_S,
    SESSION,
    WORKER,
    age_s,
    measured_trials,
)
from kernelforge.tune.sharing import signs_of_life, turn
from kernelforge.tune.workers import is_gone, is_of_this_host, this_process

FINALS = "finals"
"""Study attribute: the final measurements, and of which trials and with which effort."""


class LeftError(TuneError):
    """Other workers still search: the last one of them makes the finals."""


def enter(study: Study) -> None:
    """Says that this process works on the study."""
    study.set_user_attr(SESSION + this_process(), True)


@contextmanager
def present(study: Study) -> Iterator[None]:
    """Works on the study meanwhile; an error ends that at once."""
    enter(study)
    try:
        yield
    except BaseException:
        with suppress(Exception):  # what went wrong before is what counts
            leave(study)
        raise


def leave(study: Study) -> None:
    """Says that it does no more."""
    study.set_user_attr(SESSION + this_process(), False)


def finals_once(
    study: Study, storage: BaseStorage, effort: str, make: Callable[[], Sequence[Measurement]]
) -> list[Measurement]:
    """The finals of all trials that there are: those that were made of them, or new ones.

    Args:
        study: whose search is over for this process.
        storage: that holds it.
        effort: with which they are made: others of another one do not count.
        make: makes them.

    Raises:
        LeftError: others still search, or are at the finals.
    """
    with turn(storage, study.study_name):
        others = at_work(study, storage)
        if others:
            leave(study)
            raise LeftError(
                f"left to {', '.join(others)}: the last one that searches makes the finals"
            )
        # Under the name of this process until they are made: another one does not begin them, too.
        trials = study.get_trials(deepcopy=False)
        known = kept_finals(study, effort, trials)
        if known:
            leave(study)
            return known
        enter(study)
    try:
        finals = list(make())
        if any(m.ok for m in finals):
            kept = {
                "trials": len(measured_trials(trials)), "effort": effort,
                "finals": [m.to_json() for m in finals],
            }  # fmt: skip
            study.set_user_attr(FINALS, kept)
    finally:
        leave(study)
    return finals


def kept_finals(study: Study, effort: str, trials: Sequence[FrozenTrial]) -> list[Measurement]:
    """The finals that the study holds, if they are of all of these trials; else nothing."""
    kept: Any = study.user_attrs.get(FINALS)
    with suppress(KeyError, TypeError, MeasureError):  # written by another version
        if (kept["trials"], kept["effort"]) == (len(measured_trials(trials)), effort):
            return [Measurement.from_json(data) for data in kept["finals"]]
    return []


def add_missing(journal: Journal, finals: Iterable[Measurement]) -> None:
    """Adds to a journal those finals that another worker made into its own."""
    have = {(m.family, m.problem, m.variant, m.seed) for m in journal if m.phase == "final"}
    for m in finals:
        if (m.family, m.problem, m.variant, m.seed) not in have:
            journal.append(m)


def at_work(study: Study, storage: BaseStorage) -> list[str]:
    """Other processes that have not left the study, and are not known to be dead.

    Of one on another machine that is what it measures now or did in the last minute.
    """
    trials = study.get_trials(deepcopy=False)
    signs = signs_of_life(storage, study._study_id)
    found = []
    for name, present in study.user_attrs.items():
        process = name.removeprefix(SESSION)
        if process == name or not present or process == this_process():
            continue
        own = [t for t in trials if t.user_attrs.get(WORKER) == process]
        if is_of_this_host(process):
            busy = not is_gone(process)
        elif is_gone(process):  # if not, another machine of that name gives signs of life
            busy = any(signs.get(t._trial_id, False) for t in own)
        else:
            busy = any(_is_fresh(t, signs) for t in own)
        if busy:
            found.append(process)
    return sorted(found)


def _is_fresh(trial: FrozenTrial, signs: Mapping[int, bool]) -> bool:
    if trial.state is TrialState.RUNNING:
        late = age_s(trial, trial.datetime_start) > 10 * ORPHAN_S
        return signs.get(trial._trial_id, not late)
    return age_s(trial, trial.datetime_complete) < ORPHAN_S
