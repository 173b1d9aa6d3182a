"""Advisory locks of files, which the operating system gives back when their holder dies."""

from __future__ import annotations

from typing import IO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

CAN_LOCK = fcntl is not None


def hold(file: IO[bytes] | int, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file until it is closed, or its holder dies.

    Args:
        file: which, or its descriptor.
        shared: with everybody who wants no more than that; else alone.
        wait: until others let go.

    Returns:
        Whether it is locked now.
    """
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
