"""Threads that mostly compute outside the interpreter, beside one that mostly needs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

TURN_S: Final = 2e-4
"""How long a thread may be kept waiting for the interpreter: Python's own 5 ms are longer than most
calls that such a thread makes."""


@contextmanager
def taking_turns() -> Iterator[None]:
    """Lets threads have the interpreter soon where they need it shortly, between long calls."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
