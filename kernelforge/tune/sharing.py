"""Several workers on one study: one of them asks at a time, and a dead one is noticed.

A worker chooses among what nobody tried or is trying. Between its look at the study and its own
entry another worker must not look: otherwise both measure the same variant.
"""

from __future__ import annotations

import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import Trial

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

BEAT_S = 20
"""Seconds between two signs of life of a worker that measures."""
GRACE_S = 60
"""Without a sign for so long, by the database's own clock, it is dead."""


class FileStorage(JournalStorage):
    """A journal file, and beside it the file that workers take turns by."""

    def __init__(self, backend: JournalFileBackend, path: Path) -> None:
        super().__init__(backend)
        self.turns = path.with_name(path.name + ".turn")


@contextmanager
def turn(storage: BaseStorage, study: str) -> Iterator[None]:
    """Held by one worker at a time, on any machine; a worker that dies gives it back.

    Taken on PostgreSQL by an advisory lock, with a file by the operating system's; other storages
    know none, and two of their workers may now and then try the same.
    """
    storage = _inner(storage)
    if isinstance(storage, RDBStorage) and storage.engine.dialect.name == "postgresql":
        # One connection beside the storage's own: its end, however it comes, ends the lock.
        with storage.engine.connect() as connection:
            key = zlib.crc32(f"kernelforge {study}".encode())
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({key})")
    elif isinstance(storage, FileStorage) and fcntl is not None:
        with storage.turns.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
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
            storage.record_heartbeat(trial)

    storage.record_heartbeat(trial)
    thread = threading.Thread(target=beat, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def silent(storage: BaseStorage, study: int) -> frozenset[int]:
    """Ids of the study's running trials whose workers gave signs of life, and have stopped."""
    storage = _inner(storage)
    if not isinstance(storage, RDBStorage) or storage.heartbeat_interval is None:
        return frozenset()
    return frozenset(storage._get_stale_trial_ids(study))


def _inner(storage: BaseStorage) -> BaseStorage:
    """The storage behind the cache that a study puts before a database."""
    if isinstance(storage, FileStorage):
        return storage
    inner = getattr(storage, "_backend", storage)
    return inner if isinstance(inner, RDBStorage) else storage
