"""A verb that is asked to end ends as on Ctrl-C, and says by its status what asked it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from kernelforge.cli.stopping import exit_code, stoppable


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_interrupts_once_and_handlers_are_put_back(number: int, code: int) -> None:
    inherited = signal.getsignal(number)  # ignored, under nohup
    before = signal.SIG_DFL
    signal.signal(number, before)
    with pytest.raises(KeyboardInterrupt) as caught, stoppable():
        assert signal.getsignal(number) is not before
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert exit_code(caught.value) == code
    assert signal.getsignal(number) is before
    signal.signal(number, inherited)
    assert exit_code(KeyboardInterrupt()) == 130


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
