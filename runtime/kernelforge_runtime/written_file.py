"""A file that is written whole, and then takes the place of what is there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def place_of(path: str | os.PathLike[str]) -> Path:
    """The path that a new file of this name takes: where links lead to.

    What is renamed to a path replaces whatever is there: a link, or /dev/null of the whole machine.
    So a link's target is the one to replace, and only a file may be.

    Args:
        path: as the user gave it.

    Raises:
        OSError: its folder is not there or takes no file, or what is there is no file.
        ValueError: it is no path.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, name a file in it", str(path))
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "what is there is not a regular file", str(path))
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path))
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "its folder may not be written", str(path))
    return place


@contextlib.contextmanager
def written_whole(place: Path, lasting: bool = False) -> Iterator[BinaryIO]:
    """A new file, which takes its place when the block ends; if that fails nothing of it is left.

    Who reads meanwhile, and who finds the disk full, has what was there before; of several that are
    written at once the last one is there in the end, whole.

    Args:
        place: where it belongs; its folder is there.
        lasting: it is on the disk before it takes the place of what cannot be made again.

    Raises:
        OSError: it cannot be written.
    """
    part = place.with_name(f".{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        part.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
