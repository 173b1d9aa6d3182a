"""Where a file belongs that is written whole and then takes the place of what is there."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


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
