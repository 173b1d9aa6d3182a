"""Finals of a shared study: once, by the worker that ends last, with everybody's trials."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from kernelforge.errors import TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.last_one import LeftError, add_missing, at_work, finals_once, present
from kernelforge.tune.objective import MEASUREMENT, SESSION, WORKER
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.storage import open_storage
from kernelforge.tune.study import tune_problem, tune_problems
from kernelforge.tune.workers import this_process
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler, small_family

ELSEWHERE = "another-machine:1"


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


@pytest.fixture
def neighbour() -> Iterator[str]:
    """A living process of this machine, as workers are named."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield f"{socket.gethostname()}:{process.pid}"
    process.kill()
    process.communicate()


def final(ns: float = 9.0, outcome: Outcome = Outcome.OK, seed: int = 1) -> Measurement:
    return Measurement(
        "small", "f32", "M8.K8", "small/f32/ROWS1", outcome, median_ns=ns, phase="final", seed=seed
    )


def trial(study: optuna.Study, worker: str = "", ended: float = 0.0) -> None:
    """One that ended so many seconds ago."""
    at = datetime.now() - timedelta(seconds=ended)
    done = create_trial(state=TrialState.COMPLETE, value=1.0)
    done.datetime_start = done.datetime_complete = at
    done.user_attrs = {WORKER: worker, MEASUREMENT: final().to_json()}
    study.add_trial(done)


def finals(study: optuna.Study, ns: float = 9.0, effort: str = "quick") -> list[Measurement]:
    return finals_once(study, study._storage, effort, lambda: [final(ns)])


def test_whoever_ends_before_the_others_leaves_the_finals_to_them(
    study: optuna.Study, neighbour: str
) -> None:
    study.set_user_attr(SESSION + neighbour, True)
    with pytest.raises(LeftError, match=neighbour), present(study):
        finals(study)
    assert at_work(study, study._storage) == [neighbour]
    assert study.user_attrs[SESSION + this_process()] is False
    study.set_user_attr(SESSION + neighbour, False)  # it has left
    assert finals(study)[0].median_ns == 9.0


def test_a_worker_that_died_is_not_waited_for(study: optuna.Study) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    study.set_user_attr(f"{SESSION}{socket.gethostname()}:{gone.pid}", True)
    assert at_work(study, study._storage) == []


def test_one_on_another_machine_is_at_work_while_it_measures_and_shortly_after(
    study: optuna.Study,
) -> None:
    study.set_user_attr(SESSION + ELSEWHERE, True)
    assert at_work(study, study._storage) == []  # it has not begun
    trial(study, ELSEWHERE, ended=300)
    assert at_work(study, study._storage) == []
    trial(study, ELSEWHERE, ended=5)
    assert at_work(study, study._storage) == [ELSEWHERE]
    study.set_user_attr(SESSION + ELSEWHERE, False)
    assert at_work(study, study._storage) == []
    study.set_user_attr(SESSION + ELSEWHERE, True)
    other = optuna.create_study(storage=study._storage)
    other.set_user_attr(SESSION + ELSEWHERE, True)
    other.ask({}).set_user_attr(WORKER, ELSEWHERE)
    assert at_work(other, study._storage) == [ELSEWHERE]


def test_finals_are_made_once_for_the_same_trials_and_effort(study: optuna.Study) -> None:
    trial(study)
    assert finals(study, 9.0)[0].median_ns == 9.0
    assert finals(study, 8.0)[0].median_ns == 9.0
    assert finals(study, 7.0, "full")[0].median_ns == 7.0
    trial(study)
    assert finals(study, 6.0, "full")[0].median_ns == 6.0
    study.set_user_attr("finals", {"of": "another version"})
    assert finals(study, 5.0, "full")[0].median_ns == 5.0


def test_finals_without_a_winner_are_made_again_and_an_error_leaves(study: optuna.Study) -> None:
    wrong = final(outcome=Outcome.WRONG_RESULT)
    assert finals_once(study, study._storage, "quick", lambda: [wrong]) == [wrong]
    assert finals(study)[0].ok
    with pytest.raises(TuneError), present(study):
        raise TuneError("none is right")
    assert not any(study.user_attrs[n] for n in study.user_attrs if n.startswith(SESSION))


def test_a_journal_gets_the_finals_that_another_one_has_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for _ in range(2):
        add_missing(journal, [final(), final(seed=2)])
    assert [m.seed for m in journal] == [1, 2]


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_run_takes_what_others_left_it_and_makes_no_finals_while_they_search(
    llvmpipe: Device, tmp_path: Path, neighbour: str
) -> None:
    needs_compiler()
    family, problem = small_family(), Problem(M=64, K=64)
    storage, journal = open_storage(tmp_path / "studies"), Journal(tmp_path / "journal.jsonl")

    def run() -> int:
        task = TuneTask(family, F32, problem)
        return len(tune_problems(llvmpipe, [task], Budget(3), journal, storage))

    quick = Effort(sample_ns=2e5, samples=3, longest_sample_ns=2e6)
    first = tune_problem(llvmpipe, family, F32, problem, Budget(2), journal, storage, effort=quick)
    study = optuna.load_study(study_name=first.study, storage=storage)
    study.set_user_attr(SESSION + neighbour, True)
    assert run() == 0
    made = [m for m in read_journal(journal.path) if m.phase == "final"]
    assert [(m.variant, m.seed) for m in made] == [(m.variant, m.seed) for m in first.finalists]
    assert sum(m.phase == "trial" for m in journal) == 3
    study.set_user_attr(SESSION + neighbour, False)
    assert run() == 1
    again = [m for m in read_journal(journal.path) if m.phase == "final"]
    assert len(again) > len(made)
    assert run() == 1  # nothing left to search: the finals are there
    assert [m for m in read_journal(journal.path) if m.phase == "final"] == again
