"""The file that a study is kept in: Optuna's journal, with lines that are whole or not there.

Optuna's own backend appends and hopes: where a process was killed, or a disk was full, in the
middle of a line, the next line is written behind the torn one, and neither it nor anything after it
can be read again. Here whoever writes cuts off what is torn, and takes back what did not fit.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from kernelforge.errors import TuneError
from kernelforge.tune.file_lock import CAN_LOCK, hold

BEGINS = b'{"op_code":'
"""Every line of such a file."""
STEP = 1 << 16


class StorageError(TuneError):
    """Studies cannot be read or written where they are kept."""


class FileStorage(JournalStorage):
    """Studies in one file; beside it the files that workers take turns by, and are counted by.

    Args:
        path: of the file; made if it is not there.

    Raises:
        StorageError: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path)
        super().__init__(StudyFile(path))
        self.turns = path.with_name(path.name + ".turn")
        used = os.open(_used(path), os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, used)
        if CAN_LOCK:
            hold(used, shared=True)  # until this storage is no more


class StudyFile(JournalFileBackend):
    """The lines of such a file."""

    def __init__(self, path: Path) -> None:
        lock = JournalFileOpenLock(str(path))
        if CAN_LOCK:
            lock = _KernelLock(path.with_name(path.name + ".lock"))
        super().__init__(str(path), lock_obj=lock)
        self._path = path

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from this number on; one that is torn and the last is not there yet."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise StorageError(
                f"{self._path}: a line in the middle is damaged ({error}); --no-resume sets the "
                "file aside and begins anew, or --storage names another one"
            ) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds all lines, or none.

        Raises:
            OSError: they could not be written; FileNotFoundError where somebody took the file away,
                as a new one would not know the studies that these lines are of.
        """
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        self._lock.acquire()
        try:
            with self._path.open("r+b", buffering=0) as file:
                end = _whole(file)
                try:
                    left = memoryview(b"".join(lines))
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        finally:
            self._lock.release()


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
        hold(self._file)
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def set_aside(path: Path, name: str) -> None:
    """Renames a file of studies so that a new one can begin, and nothing is lost.

    Args:
        path: of the file; nothing happens where there is none.
        name: its new one.

    Raises:
        StorageError: somebody works with it.
    """
    if not path.exists():
        return
    with _used(path).open("ab") as used:
        if CAN_LOCK and not hold(used, wait=False):
            raise StorageError(
                f"{path}: another run is tuning with it; let that one end, or choose another "
                "folder with --journal"
            )
        place, again = path.with_name(name), 1
        while place.exists():  # a clock may show the same time twice
            place, again = path.with_name(f"{name}.{again}"), again + 1
        path.rename(place)


def _used(path: Path) -> Path:
    return path.with_name(path.name + ".used")


def _refuse_foreign(path: Path) -> None:
    """What is not ours is not written to: a mere slip of the hand must not cost anybody a file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(BEGINS))
    except FileNotFoundError:
        return
    if not BEGINS.startswith(head) and head != BEGINS:
        raise StorageError(
            f"{path} is no file of studies; name a new file, or a database by its URL, e.g. "
            "sqlite:///studies.db"
        )


def _whole(file: IO[bytes]) -> int:
    """Cuts off a torn last line, and stands where the next one begins."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at:
        start = max(0, at - STEP)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            at = start + found + 1
            break
        at = start
    if at < end:
        file.truncate(at)
    return file.seek(at)
