"""Several workers on one study: one of them asks at a time, and a dead one is noticed.

A worker chooses among what nobody tried or is trying. Between its look at the study and its own
entry another worker must not look: otherwise both measure the same variant.
"""

from __future__ import annotations

import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import Study
from optuna.trial import Trial
from sqlalchemy.exc import SQLAlchemyError

from kernelforge.tune.file_lock import CAN_LOCK, hold
from kernelforge.tune.study_file import FileStorage

BEAT_S = 20
"""Seconds between two signs of life of a worker that measures."""
GRACE_S = 60
"""Without a sign for so long, by the database's own clock, it is dead."""
KEPT_ALIVE = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
"""Of the connection that holds a turn: a worker that does not answer for a minute gives it back."""


@contextmanager
def turn(storage: BaseStorage, study: str) -> Iterator[None]:
    """Held by one worker at a time, on any machine; a worker that dies gives it back.

    Taken on PostgreSQL by an advisory lock, with files by the operating system's; other databases
    know none, and two of their workers may now and then try the same.
    """
    storage = _inner(storage)
    if isinstance(storage, RDBStorage) and storage.engine.dialect.name == "postgresql":
        # One connection beside the storage's own: its end, however it comes, ends the lock.
        with storage.engine.connect() as connection:
            key = zlib.crc32(f"kernelforge {study}".encode())
            # A machine that is switched off does not say so: the server is to ask.
            asked = ", ".join(f"set_config('{n}', '{s}', false)" for n, s in KEPT_ALIVE.items())
            connection.exec_driver_sql(f"SELECT {asked}, pg_advisory_lock({key})")
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({key})")
    elif CAN_LOCK and (turns := _turns_of(storage)) is not None:
        with turns.open("ab") as file:
            hold(file)
            yield
    else:
        yield


def ask(study: Study, space: dict[str, BaseDistribution]) -> Trial:
    """A new trial; `alive` gives the signs of life that Optuna misses here, and warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        return study.ask(space)


@contextmanager
def alive(storage: BaseStorage, trial: int) -> Iterator[None]:
    """Says meanwhile, where the storage takes it, that the trial with this id is worked on."""
    storage = _inner(storage)
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_S):
            # Where the database is gone, whoever tells the result says so.
            with suppress(StorageInternalError, SQLAlchemyError):
                storage.record_heartbeat(trial)

    storage.record_heartbeat(trial)
    thread = threading.Thread(target=beat, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def signs_of_life(storage: BaseStorage, study: int) -> dict[int, bool]:
    """Running trials whose workers gave signs of life, by id: whether they still do.

    By the database's own clock: those of the machines need not agree.
    """
    storage = _inner(storage)
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        return {}
    with storage.engine.connect() as connection:
        given = connection.exec_driver_sql(
            "SELECT t.trial_id FROM trials t JOIN trial_heartbeats h ON h.trial_id = t.trial_id "
            f"WHERE t.state = 'RUNNING' AND t.study_id = {study:d}"
        )
        found = dict.fromkeys((int(row[0]) for row in given), True)
    return {**found, **dict.fromkeys(storage._get_stale_trial_ids(study), False)}


def _turns_of(storage: BaseStorage) -> Path | None:
    """The file that workers take turns by; None where there is none."""
    if isinstance(storage, FileStorage):
        return storage.turns
    if isinstance(storage, RDBStorage) and storage.engine.dialect.name == "sqlite":
        database = Path(storage.engine.url.database or "")
        if database.is_file():
            return database.with_name(database.name + ".turn")
    return None


def _inner(storage: BaseStorage) -> BaseStorage:
    """The storage behind the cache that a study puts before a database."""
    if isinstance(storage, FileStorage):
        return storage
    inner = getattr(storage, "_backend", storage)
    return inner if isinstance(inner, RDBStorage) else storage
