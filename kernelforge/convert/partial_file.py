"""A file in the making: nobody sees it before it is whole, and it goes with whoever was writing it.

Where the system can (O_TMPFILE) it has no name until then, so that nothing is left of a killed
process. Elsewhere it has a name by which the next one that writes into the same folder knows it,
and is locked as long as somebody writes it: what can be locked is a leftover, and is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

try:
    import fcntl
except ImportError:  # Windows: there, a file that somebody has open cannot be removed
    fcntl = None  # type: ignore[assignment]

_HOST: Final = hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()
_NAME: Final = re.compile(r"\.kernelforge-(?:([0-9a-f]{6})-)?[0-9a-f]{12}\.part")
_LONG_AGO_S: Final = 86400.0
"""Another machine's lock may not be seen over a network: what it wrote lately is left alone."""


class PartialFile:
    """Takes the place of `target` when it is finished, and vanishes when it is not.

    Attributes:
        file: to be written and read.
    """

    def __init__(self, target: Path) -> None:
        """Opens it in the target's folder.

        Raises:
            OSError: the folder takes no file.
        """
        self._target = target
        self._name = target.with_name(f".kernelforge-{_HOST}-{secrets.token_hex(6)}.part")
        unnamed = _open_unnamed(target.parent)
        self._has_name = unnamed is None
        self.file: BinaryIO = self._name.open("x+b") if unnamed is None else unnamed
        _lock(self.file)

    @property
    def path(self) -> Path:
        """By which this process can open it while it is being written."""
        return self._name if self._has_name else Path(f"/proc/self/fd/{self.file.fileno()}")

    def finish(self) -> None:
        """Brings it to disk and gives it the target's name.

        Raises:
            OSError: the disk or the folder does not take it.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        if not self._has_name:
            self._take_name()
        self._name.replace(self._target)
        self._has_name = False
        _sync_folder(self._target.parent)

    def _take_name(self) -> None:
        folder = os.open(self._target.parent, os.O_RDONLY)
        try:
            # With a folder given, the link is that of the file and not of the link in /proc.
            os.link(self.path, self._name.name, dst_dir_fd=folder)
            self._has_name = True
        except OSError:  # no /proc, or a system that forbids it
            self.file.seek(0)
            with self._name.open("xb") as copy:
                self._has_name = True
                shutil.copyfileobj(self.file, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        finally:
            os.close(folder)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            self.file.close()
        if self._has_name:
            self._name.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> list[Path]:
    """Removes what writers that are no more left in a folder; the paths. Never fails."""
    try:
        found = [entry for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]
    except OSError:
        return []
    removed = []
    for entry in found:
        with contextlib.suppress(OSError):
            if _is_leftover(entry):
                Path(entry.path).unlink()
                removed.append(Path(entry.path))
    return removed


def _is_leftover(entry: os.DirEntry[str]) -> bool:
    about = entry.stat(follow_symlinks=False)
    match = _NAME.fullmatch(entry.name)
    if not stat.S_ISREG(about.st_mode) or match is None:
        return False
    if match[1] != _HOST and time.time() - about.st_mtime < _LONG_AGO_S:
        return False
    if fcntl is None:
        return True
    with Path(entry.path).open("r+b") as file:
        return _lock(file)


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else has it locked, which is then ours until it is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it, or the file system knows no locks
        return False
    return True


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A file without a name; None where the system has none."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.fdopen(os.open(folder, os.O_RDWR | flag, 0o666), "w+b")
    except OSError:
        return None


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
