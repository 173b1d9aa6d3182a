"""Reading a journal line by line: what is damaged or forged is skipped with a warning.

A journal comes back from a disk that may have been full, or from somebody else's machine. What is
made of it, pages among it, must not be at the mercy of a line that this program did not write.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from kernelforge_runtime.errors import KernelForgeError

log = logging.getLogger(__name__)

LONGEST = 4096
"""Characters of a name. Variants' names are the longest there are, and stay under a tenth of it."""
LEAST_NS, MOST_NS = 1e-3, 1e15
"""No time of a dispatch is outside of it: that would be a picosecond, or eleven days."""
SAID = 3
"""Damaged lines that are named one by one; the rest are counted."""
_ODD = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]"
)
"""What has no glyph: it would act on a terminal or on the order of a line, or cannot be written."""
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
          KernelForgeError)  # fmt: skip
"""What reading a thing of another form may raise."""
T = TypeVar("T")


def read_lines(
    path: Path, read: Callable[[Any], T | None], having: str = "", warn: bool = True
) -> list[T]:
    """What `read` makes of each whole line, in order; without those of which it makes None.

    Args:
        path: of the journal.
        read: makes something of a line's JSON; what it raises is the line's damage.
        having: lines without this text are passed over unread.
        warn: whether damaged lines are worth a word: not where another reader has said so.

    Returns:
        An empty list where there is no such file.

    Raises:
        OSError: the file exists but cannot be read.
    """
    found: list[T] = []
    damaged, wanted = 0, having.encode()
    try:
        file = _opened(path)
    except FileNotFoundError:
        return []
    with file:
        require_regular(file, path)
        for number, line in enumerate(file, 1):
            if not line.strip() or wanted not in line:
                continue
            try:
                one = read(json.loads(line))
            except DAMAGE as error:
                damaged += 1
                if warn and damaged <= SAID:
                    why = " ".join(str(error).split())[:200]
                    log.warning("%s line %d is damaged and was skipped (%s)", path, number, why)
                continue
            if one is not None:
                found.append(one)
    if warn and damaged > SAID:
        log.warning("%s: %d more lines are damaged and were skipped", path, damaged - SAID)
    return found


def require_regular(file: IO[bytes], path: Path) -> None:
    """Stops where a journal is a device or a pipe, which may be endless.

    Raises:
        OSError: it is one.
    """
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file; remove it", str(path))


def _opened(path: Path) -> IO[bytes]:
    """A file to read, without waiting for whoever might write into a pipe."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")


def name(value: object) -> str:
    """A name: what cannot be seen in it is replaced.

    Raises:
        TypeError: it is no text.
        ValueError: it is too long.
    """
    if not isinstance(value, str):
        raise TypeError(f"a name is {type(value).__name__}, expected text")
    if len(value) > LONGEST:
        raise ValueError(f"a name of {len(value)} characters")
    return sys.intern(_ODD.sub("\ufffd", value))  # a journal says the same few a million times


def time_ns(value: object) -> float:
    """A time in ns: NaN and infinity stand for none.

    Raises:
        TypeError, ValueError: it is no number, negative, or no time that anything takes.
    """
    found = number(value)
    if math.isnan(found) or found == math.inf or found == 0:
        return found
    if not LEAST_NS <= found <= MOST_NS:
        raise ValueError(f"a time of {found:g} ns")
    return found


def number(value: object) -> float:
    """A number: None is NaN, and infinities may be words, as JSON has neither.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{type(value).__name__}, expected a number")
    if isinstance(value, str) and value not in ("inf", "-inf"):
        raise ValueError(f"{value[:20]!r}, expected a number")
    return float(value)


def within(value: object, low: float, high: float) -> float:
    """A number from `low` to `high`.

    Raises:
        TypeError, ValueError, OverflowError: it is none.
    """
    found = number(value)
    if not low <= found <= high:
        raise ValueError(f"{found:g}, expected {low:g} to {high:g}")
    return found


def whole(value: object) -> int:
    """A whole number from 0 up, small enough for a page.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(value).__name__}, expected a whole number")
    if not 0 <= value < 1 << 63:
        raise ValueError("a whole number out of range")
    return value
