"""Workers that share a study, and workers that die: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage

from kernelforge.errors import TuneError
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune import storage as storages
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.objective import measured_trials, release_orphans
from kernelforge.tune.sampler import ABANDONED
from kernelforge.tune.sharing import alive, ask
from kernelforge.tune.storage import open_storage
from tests.toolkit.cli_process import ROOT, environment

WORKER = [sys.executable, "-m", "tests.toolkit.synthetic_worker"]


def start(storage: object, folder: Path, *options: object) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [*WORKER, str(storage), str(folder), *map(str, options)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(worker: subprocess.Popen[str]) -> list[tuple[str, float]]:
    """Variant and time of each of its trials."""
    said, complaints = worker.communicate(timeout=240)
    assert worker.returncode == 0, complaints
    return [(line.split()[0], float(line.split()[1])) for line in said.splitlines()]


def in_study(storage: object, study: str = "synthetic") -> list[Measurement]:
    held = open_storage(str(storage))
    found = optuna.load_study(study_name=study, storage=held).get_trials()
    close(held)
    return [m for _, m in measured_trials(found)]


def close(storage: BaseStorage) -> None:
    """A worker's end does it; here the next test would be blamed for open connections."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.slow
def test_killed_at_twenty_random_instants_no_trial_is_lost_or_measured_twice(
    tmp_path: Path,
) -> None:
    storage = tmp_path / "studies"
    worker = start(storage, tmp_path, "--kills", 20, "--pause", 0.015, "--rows", 20)
    said, complaints = worker.communicate(timeout=240)
    assert worker.returncode == 0, complaints
    assert complaints.split().count("killed") >= 15
    told = [line.split()[0] for line in said.splitlines() if len(line.split()) == 2]
    kept = [m.variant for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "trial"]
    assert set(told) <= set(kept)
    assert Counter(kept).most_common(1)[0][1] == 1
    assert len(kept) == 20 * 12
    assert Counter(m.variant for m in in_study(storage)) == Counter(kept)


def test_two_workers_on_one_file_try_everything_once(tmp_path: Path) -> None:
    storage = tmp_path / "studies"
    pair = [start(storage, tmp_path / name, "--pause", 0.02, "--rows", 3) for name in ("a", "b")]
    told = [variant for worker in pair for variant, _ in finished(worker)]
    assert len(told) == len(set(told)) == 3 * 12 == len(in_study(storage))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[optuna.Study]:
    """On a database, where a sign of life is due every second."""
    monkeypatch.setattr("kernelforge.tune.sharing.BEAT_S", 1)
    monkeypatch.setattr(storages, "BEAT_S", 1)
    monkeypatch.setattr(storages, "GRACE_S", 5)  # time for one that is held up
    held = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    yield optuna.create_study(storage=held)
    close(held)


def test_a_worker_on_another_machine_is_dead_once_it_gives_no_sign_of_life(
    study: optuna.Study, tmp_path: Path
) -> None:
    storage, journal = study._storage, Journal(tmp_path / "journal.jsonl")
    living, dead = ask(study, {}), ask(study, {})
    for trial in (living, dead):
        trial.set_user_attr("worker", "another-machine:1")
    with alive(storage, living._trial_id):
        with alive(storage, dead._trial_id):
            assert release_orphans(study, storage, journal) == 0
        released, until = 0, time.monotonic() + 60
        while not released and time.monotonic() < until:
            time.sleep(0.5)
            released = release_orphans(study, storage, journal)
    assert released == 1
    by_number = {trial.number: trial for trial in study.get_trials()}
    assert by_number[dead.number].user_attrs[ABANDONED] == "killed"
    assert not by_number[living.number].state.is_finished()


def test_a_measurement_that_only_the_journal_has_ends_its_trial_and_is_not_made_again(
    study: optuna.Study, tmp_path: Path
) -> None:
    storage, journal = study._storage, Journal(tmp_path / "journal.jsonl")
    release_orphans(study, storage, journal)
    ran_out = subprocess.Popen([sys.executable, "-c", ""])
    ran_out.wait()
    for _ in range(2):
        ask(study, {}).set_user_attr("worker", f"{socket.gethostname()}:{ran_out.pid}")
    one = Measurement("small", "f32", "M8.K8", "small/f32/ROWS1", Outcome.OK, median_ns=7.0)
    journal.append(one, f"{study.study_name}#another#0")  # of a study that was set aside
    journal.append(one, f"{study.study_name}#{study.user_attrs['id']}#1")
    assert release_orphans(study, storage, journal) == 1
    first, second = study.get_trials()
    assert ABANDONED in first.user_attrs
    assert second.value == 7.0
    assert measured_trials([first, second]) == [(1, one)]


# --- PostgreSQL ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server on loopback that lives as long as these tests."""
    with contextlib.ExitStack() as opened:
        try:
            url = opened.enter_context(two_workers().postgres())
        except TuneError as error:
            pytest.skip(str(error))
        yield f"{url}/postgres"


def two_workers() -> Any:
    """The script that measures, as a module."""
    path = ROOT / "scripts" / "two_workers.py"
    spec = importlib.util.spec_from_file_location("two_workers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_two_workers_did_together_is_counted_while_both_are_at_work() -> None:
    script = two_workers()
    assert script.rate([3.0, 1.0, 2.0]) == pytest.approx(1.0)
    assert math.isnan(script.rate([1.0]))
    each = [[0.0, 1.0, 2.0, 3.0], [1.5, 2.5, 9.0]]
    assert sorted(script.together(each)) == [1.5, 2.0, 2.5, 3.0]
    assert 0.0 <= script.free_cores(0.05) <= (os.cpu_count() or 1) + 0.5


def rate(told: list[tuple[str, float]]) -> float:
    """Trials per second between the first and the last; 0 where there are no two."""
    times = sorted(at for _, at in told)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


@pytest.mark.slow
def test_two_workers_on_postgresql_try_everything_once_and_are_faster_than_one(
    postgres: str, tmp_path: Path
) -> None:
    ratios: list[float] = []
    # Other work on this machine may take one of them its processor: then it is asked once more.
    while max(ratios, default=0.0) <= 1.1 and len(ratios) < 3:
        ratios.append(twice_as_many(postgres, tmp_path / str(len(ratios))))
    print(f"two workers' trials per second, by one's: {ratios}")  # noqa: T201
    assert ratios[-1] > 1.1  # two where the processor is free: asking in turns is what is lost


def twice_as_many(postgres: str, folder: Path) -> float:
    """What two workers get done in a second, by what one alone does; 0 where one came too late."""
    folder.mkdir()
    slow = ("--pause", 0.6, "--rows", 2)
    names = [f"{who}-{folder.name}" for who in ("one", "two")]
    alone = finished(start(postgres, folder / "one", "--study", names[0], *slow))
    pair = [start(postgres, folder / name, "--study", names[1], *slow) for name in ("a", "b")]
    each = [finished(worker) for worker in pair]
    both = [line for told in each for line in told]
    assert len(both) == len({variant for variant, _ in both}) == 2 * 12
    times = [{m.variant: m.median_ns for m in in_study(postgres, name)} for name in names]
    assert times[0] == times[1]
    assert len(alone) == len(times[0]) == 2 * 12
    if not all(each):
        return 0.0
    starts = [min(at for _, at in told) for told in each]
    ends = [max(at for _, at in told) for told in each]
    together = [line for line in both if max(starts) <= line[1] <= min(ends)]
    return rate(together) / rate(alone)


@pytest.mark.slow
def test_the_trial_of_a_worker_that_died_is_done_by_the_other(
    postgres: str, tmp_path: Path
) -> None:
    dead = start(postgres, tmp_path / "dead", "--study", "dying", "--pause", 1.0, "--rows", 1)
    assert dead.stdout is not None
    dead.stdout.readline()
    time.sleep(0.3)  # by now it is at the next
    dead.kill()
    dead.communicate()
    # It says what it measured before the study knows: where that was slow, the trial died with it.
    done = {m.variant for m in in_study(postgres, "dying")}
    assert len(done) < 12
    told = finished(
        start(postgres, tmp_path / "other", "--study", "dying", "--pause", 0, "--rows", 1)
    )
    variants = [variant for variant, _ in told]
    assert not done & {*variants}
    assert len(variants) == len(set(variants)) == 12 - len(done)
    assert len(in_study(postgres, "dying")) == 12


@pytest.mark.slow
def test_dropped_by_the_database_a_worker_goes_on_or_says_so_and_nothing_is_done_twice(
    postgres: str, tmp_path: Path
) -> None:
    """As by a server that is started again, or one that fails over, in mid-study."""
    worker = start(postgres, tmp_path, "--study", "dropped", "--pause", 0.5, "--rows", 1)
    assert worker.stdout is not None
    for _ in range(2):
        worker.stdout.readline()
    admin = open_storage(postgres)
    assert isinstance(admin, RDBStorage)
    with admin.engine.connect() as connection:
        dropped = connection.exec_driver_sql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
        assert dropped.scalar_one() > 0
    close(admin)
    _, complaints = worker.communicate(timeout=240)
    if worker.returncode:
        assert complaints.count("\n") == 1, complaints
        assert complaints.startswith("the tuning storage failed: ")
        assert "run the same command again" in complaints
    finished(start(postgres, tmp_path, "--study", "dropped", "--pause", 0, "--rows", 1))
    kept = [m.variant for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "trial"]
    assert len(kept) == len(set(kept)) == 12
    assert sorted(m.variant for m in in_study(postgres, "dropped")) == sorted(kept)


def test_a_database_without_a_server_is_one_clear_error() -> None:
    pytest.importorskip("psycopg", reason="no driver: pip install 'kernelforge[storage]'")
    with pytest.raises(Exception, match=r"(?s)cannot open tuning storage postgresql://.*storage\]"):
        open_storage("postgresql://nobody@127.0.0.1:9/none")


def test_a_journal_line_of_a_trial_reads_as_any_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    one = Measurement("small", "f32", "M8.K8", "small/f32/ROWS1", Outcome.OK, median_ns=1.0)
    journal.append(one, "study#1#0")
    journal.append(one)
    assert list(journal) == [one, one]
    assert journal.of_trials() == {"study#1#0": one}
    assert "trial" not in json.loads(journal.path.read_text().splitlines()[1])
