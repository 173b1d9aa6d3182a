"""Who works on a study: a number that was given away again is not the process that had it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune import workers
from kernelforge.tune.journal import Journal
from kernelforge.tune.last_one import at_work
from kernelforge.tune.objective import (
    SESSION,
    WORKER,
    measured_trials,
    release_orphans,
    run_trial,
)
from kernelforge.tune.sampler import ABANDONED
from kernelforge.tune.storage import open_storage
from kernelforge.tune.workers import is_gone, is_of_this_host, this_process

HOST = socket.gethostname()
HERE, BORN = this_process().partition("@")[2].rpartition(".")[::2]

pytestmark = pytest.mark.skipif(not BORN, reason="this system does not say when processes began")


@pytest.fixture
def neighbour() -> Iterator[int]:
    """The number of another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return optuna.create_study(storage=open_storage(tmp_path / "studies"))


def test_a_process_is_gone_though_another_one_has_its_number_now(neighbour: int) -> None:
    born = workers._birth(neighbour)
    assert not is_gone(f"{HOST}:{neighbour}@{HERE}.{born}")
    assert is_gone(f"{HOST}:{neighbour}@{HERE}.{int(born) - 1}")
    assert not is_gone(f"{HOST}:{neighbour}")  # as older versions wrote it
    assert is_gone(this_process())  # asked of a trial or a session, it is one that ended before


def test_a_process_of_before_the_last_boot_is_gone_and_one_of_another_container_unknown(
    neighbour: int,
) -> None:
    boot, _, numbers = HERE.partition("-")
    before = f"{HOST}:{neighbour}@00000000-{numbers}.{workers._birth(neighbour)}"
    beside = f"{HOST}:999999999@{boot}-1.5"
    assert is_gone(before)
    assert not is_gone(beside)
    assert not is_gone("another-machine:1@1-1.1")
    assert [is_of_this_host(p) for p in (this_process(), before, beside)] == [True, False, False]
    assert not is_gone("")
    assert is_gone(f"{HOST}:no-number")
    assert is_gone(f"{HOST}:{10**30}")


def test_a_killed_search_is_not_waited_for_where_its_number_was_given_away_again(
    study: optuna.Study, neighbour: int, tmp_path: Path
) -> None:
    dead = f"{HOST}:{neighbour}@{HERE}.1"
    study.set_user_attr(SESSION + dead, True)
    study.ask({}).set_user_attr(WORKER, dead)
    assert at_work(study, study._storage) == []
    assert release_orphans(study, study._storage, Journal(tmp_path / "journal")) == 1
    assert study.get_trials()[0].user_attrs[ABANDONED] == "killed"


@pytest.mark.parametrize("done_again", [False, True])
def test_a_trial_that_was_freed_while_it_was_measured_keeps_its_measurement(
    study: optuna.Study, tmp_path: Path, done_again: bool
) -> None:
    one = Measurement("small", "f32", "M8.K8", "small/f32/ROWS1", Outcome.OK, median_ns=7.0)

    class Slept:
        """A machine that sleeps while it measures, until another one takes it for dead."""

        def measure(self, params: object, incumbent: object) -> Measurement:
            trial = study.get_trials()[0]
            study._storage.set_trial_user_attr(trial._trial_id, ABANDONED, "killed")
            study.tell(0, state=TrialState.FAIL)
            if done_again:
                study.ask({})
            return one

    journal = Journal(tmp_path / "journal")
    assert run_trial(study, study.ask({}), Slept(), journal).median_ns == 7.0  # type: ignore[arg-type]
    assert [m.median_ns for m in journal] == [7.0]
    kept = [number for number, _ in measured_trials(study.get_trials())]
    assert kept == ([] if done_again else [1])


def test_two_that_begin_at_once_free_what_a_killed_one_left_without_an_error(
    study: optuna.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.ask({}).set_user_attr(WORKER, f"{HOST}:999999999")
    left = study.get_trials()
    study.tell(0, state=TrialState.FAIL)  # the other was first
    monkeypatch.setattr(study, "get_trials", lambda **_: left)
    assert release_orphans(study, study._storage, Journal(tmp_path / "journal")) == 0
