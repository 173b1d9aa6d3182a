"""Workers that share a study, and workers that die: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, RDBStorage

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
    worker = start(storage, tmp_path, "--kills", 20, "--pause", 0.002, "--rows", 20)
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
    monkeypatch.setattr(storages, "GRACE_S", 3)
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
        time.sleep(5)
        assert release_orphans(study, storage, journal) == 1
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


def binaries() -> Path:
    """Folder of Debian's server; skips where there is none."""
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True):
        return found.parent
    pytest.skip("no PostgreSQL server: install the Debian package postgresql")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server on loopback that lives as long as these tests."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'kernelforge[storage]'")
    programs = binaries()
    who: dict[str, object] = {}
    user = pwd.getpwuid(os.geteuid())
    if user.pw_uid == 0:  # the server refuses to run as root
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                break
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="kernelforge-pg-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = None
    try:
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "tuner", "-A", "trust", "-N"],
            cwd=folder, capture_output=True, text=True, check=False, **who,
        )  # type: ignore[call-overload]  # fmt: skip
        assert made.returncode == 0, made.stderr
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder,
                 "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
                cwd=folder, stdout=log, stderr=log, **who,
            )  # type: ignore[call-overload]  # fmt: skip
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        while "ready to accept connections" not in (folder / "log").read_text():
            time.sleep(0.1)
        yield f"postgresql://tuner@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # ends sessions, then itself
            server.wait(60)
        shutil.rmtree(folder)


def rate(told: list[tuple[str, float]]) -> float:
    """Trials per second between the first and the last."""
    times = sorted(at for _, at in told)
    return (len(times) - 1) / (times[-1] - times[0])


@pytest.mark.slow
def test_two_workers_on_postgresql_try_everything_once_and_are_faster_than_one(
    postgres: str, tmp_path: Path
) -> None:
    slow = ("--pause", 0.6, "--rows", 2)
    alone = finished(start(postgres, tmp_path / "one", "--study", "one", *slow))
    pair = [start(postgres, tmp_path / name, "--study", "two", *slow) for name in ("a", "b")]
    each = [finished(worker) for worker in pair]
    both = [line for told in each for line in told]
    assert min(map(len, each)) > 0
    assert len(both) == len({variant for variant, _ in both}) == 2 * 12
    times = [{m.variant: m.median_ns for m in in_study(postgres, name)} for name in ("one", "two")]
    assert times[0] == times[1]
    assert len(alone) == len(times[0]) == 2 * 12
    starts = [min(at for _, at in told) for told in each]
    ends = [max(at for _, at in told) for told in each]
    together = [line for line in both if max(starts) <= line[1] <= min(ends)]
    ratio = rate(together) / rate(alone)
    print(f"two workers measure {ratio:.2f} times as many trials per second as one")  # noqa: T201
    assert ratio > 1.1  # two where the processor is free: asking in turns is what is lost


@pytest.mark.slow
def test_the_trial_of_a_worker_that_died_is_done_by_the_other(
    postgres: str, tmp_path: Path
) -> None:
    dead = start(postgres, tmp_path / "dead", "--study", "dying", "--pause", 1.0, "--rows", 1)
    assert dead.stdout is not None
    first = dead.stdout.readline().split()[0]
    time.sleep(0.3)  # by now it is at the next
    dead.kill()
    dead.communicate()
    told = finished(
        start(postgres, tmp_path / "other", "--study", "dying", "--pause", 0, "--rows", 1)
    )
    variants = [variant for variant, _ in told]
    assert first not in variants
    assert len(variants) == len(set(variants)) == 12 - 1
    assert len(in_study(postgres, "dying")) == 12


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
