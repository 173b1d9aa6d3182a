"""Memory of the host, a page at a time."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_POPULATE_WRITE: Final = 23  # MADV_POPULATE_WRITE, since Linux 5.14; madvise(2)


def populate(memory: NDArray[np.generic]) -> None:
    """Has the system provide pages for memory that is about to be written, all at once.

    Else each is missed, and provided, when it is first written: that takes half as long again. Does
    nothing where it cannot be had. What the memory holds stays as it is.

    Args:
        memory: contiguous.
    """
    advise = _advise()
    if advise is None:
        return
    start = memory.__array_interface__["data"][0]
    end = (start + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    if start < end:
        advise(start, end - start, _POPULATE_WRITE)


@cache
def _advise() -> Callable[..., Any] | None:
    """The system's madvise; a refusal is a number that nobody needs."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
