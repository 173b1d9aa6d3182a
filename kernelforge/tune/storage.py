"""Where Optuna keeps its studies: a journal file by default, or any database URL."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from kernelforge.errors import TuneError
from kernelforge.tune.sharing import BEAT_S, GRACE_S
from kernelforge.tune.study_file import FileStorage, StorageError

CONNECT_S = 20
"""Seconds after which a server that says nothing is not there."""
ATTEMPTS = 5
"""To open a database while other workers make its tables."""
ASKED_OF = {
    "connect_timeout": CONNECT_S, "tcp_user_timeout": 60_000,
    "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
}  # fmt: skip
"""Of a connection to PostgreSQL: a machine that is gone without a word is missed after a minute."""


def open_storage(where: str | Path) -> BaseStorage:
    """Opens or creates a storage.

    Args:
        where: a database URL as Optuna takes it (`postgresql://...`), or the path of a journal
            file. Many machines may share either.

    Raises:
        TuneError: it cannot be opened.
    """
    # What it warns of when a database fails is in the error that follows, in one line of ours.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text = str(where)
    try:
        if "://" in text:
            return _database(text)
        return FileStorage(Path(where))
    except TuneError:
        raise
    except Exception as error:  # drivers of databases raise what they like
        if "://" not in text and not isinstance(error, OSError):
            raise StorageError(
                f"{text}: a line of it is of no study ({_first_line(error)}); --no-resume sets the "
                "file aside and begins anew, or --storage names another one"
            ) from error
        raise StorageError(
            f"cannot open tuning storage {_shown(text)}: {_first_line(error)}; "
            "give --storage a file path, or a URL of a database that exists and has its driver "
            "(for PostgreSQL: pip install 'kernelforge[storage]')"
        ) from error


@contextmanager
def explained() -> Iterator[None]:
    """Turns what a database says when it fails into one error of ours; also a decorator.

    Raises:
        StorageError: it failed; what was measured is in the journal.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise StorageError(
            f"the tuning storage failed: {_first_line(error.__cause__ or error)}; what was "
            "measured is in the journal: run the same command again once the storage answers and "
            "can be written"
        ) from error


def _database(url: str) -> RDBStorage:
    if url.startswith("postgresql://") and find_spec("psycopg2") is None:
        # The name alone means the older driver; the newer one is the one that we install.
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    more: dict[str, Any] = {}
    if url.startswith("postgresql"):
        # A server that was started again between two trials is asked again.
        asked = {name: value for name, value in ASKED_OF.items() if f"{name}=" not in url}
        more = {"pool_pre_ping": True, "connect_args": asked}
    with warnings.catch_warnings():  # signs of life are called experimental
        warnings.simplefilter("ignore", ExperimentalWarning)
        for _ in range(ATTEMPTS):
            try:
                return _opened(url, more)
            except SQLAlchemyError as error:
                # Of workers that begin together on a new database, one makes the tables.
                if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                    raise
                time.sleep(1)
        return _opened(url, more)


def _opened(url: str, more: dict[str, Any]) -> RDBStorage:
    return RDBStorage(url, engine_kwargs=more, heartbeat_interval=BEAT_S, grace_period=GRACE_S)


def _shown(text: str) -> str:
    """A place as it may be printed and logged: without a password."""
    if "://" not in text:
        return text
    try:
        return make_url(text).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return f"{text.split('://', 1)[0]}://..."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
