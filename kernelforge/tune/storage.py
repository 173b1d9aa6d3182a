"""Where Optuna keeps its studies: a journal file by default, or any database URL."""

from __future__ import annotations

import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from kernelforge.errors import TuneError
from kernelforge.tune.sharing import BEAT_S, GRACE_S, FileStorage

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class _KernelLock(JournalFileOpenLock):
    """An advisory lock that the operating system releases when its holder dies.

    Optuna's own locks are files: one left by a killed process stops everybody for 30 s.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._file: Any = None

    def acquire(self) -> bool:
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_storage(where: str | Path) -> BaseStorage:
    """Opens or creates a storage.

    Args:
        where: a database URL as Optuna takes it (`postgresql://...`), or the path of a journal
            file. Many machines may share either.

    Raises:
        TuneError: it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    text = str(where)
    try:
        if "://" in text:
            return _database(text)
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: JournalFileOpenLock = JournalFileOpenLock(text)
        if fcntl is not None:
            lock = _KernelLock(path.with_name(path.name + ".lock"))
        _mend(path, lock)
        return FileStorage(JournalFileBackend(text, lock_obj=lock), path)
    except TuneError:
        raise
    except Exception as error:  # drivers of databases raise what they like
        raise TuneError(
            f"cannot open tuning storage {text}: {error}; "
            "give --storage a file path, or a URL of a database that exists and has its driver "
            "(for PostgreSQL: pip install 'kernelforge[storage]')"
        ) from error


def _database(url: str) -> RDBStorage:
    if url.startswith("postgresql://") and find_spec("psycopg2") is None:
        # The name alone means the older driver; the newer one is the one that we install.
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    with warnings.catch_warnings():  # signs of life are called experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        return RDBStorage(url, heartbeat_interval=BEAT_S, grace_period=GRACE_S)


def _mend(path: Path, lock: JournalFileOpenLock) -> None:
    """Cuts off a last line that a killed process left half written; readers refuse it otherwise."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            step = min(end, 1 << 20)
            file.seek(end - step)
            tail = file.read(step)
            if tail and not tail.endswith(b"\n"):
                file.truncate(end - step + tail.rfind(b"\n") + 1)
    finally:
        lock.release()
