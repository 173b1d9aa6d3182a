"""Asked to end by the system or by a terminal that closes, a verb ends as it does on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

REQUESTS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # fmt: skip


class StopRequest(KeyboardInterrupt):
    """A signal that asks this process to end.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile the first such signal interrupts, so that what is open is closed and told.

    The second one ends the process at once. What is ignored (nohup) stays ignored.

    Raises:
        StopRequest: a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in REQUESTS}
    mine = [number for number, handler in before.items() if handler is signal.SIG_DFL]

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for each in mine:
            signal.signal(each, signal.SIG_DFL)
        raise StopRequest(number)

    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def exit_code(error: KeyboardInterrupt) -> int:
    """128 + signal, as shells count."""
    return 128 + (error.number if isinstance(error, StopRequest) else int(signal.SIGINT))
