"""Starts, watches, kills and restarts the process that measures.

One worker is kept and used again; it gets a session of its own, so that whatever it started can be
killed with it. What it dies of is told apart here: a deadline missed, a signal, an exit, a device
that was lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from kernelforge.errors import MeasureError
from kernelforge.measure.measurement import LostError, Outcome
from kernelforge.measure.protocol import BEGUN, Channel

T = TypeVar("T")

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "kernelforge.measure.worker")
START_S = 120.0
_STOP_S = 5.0
_TAIL = 4096


class IdleLossError(LostError):
    """The worker was dead before it began with the request: no variant's fault."""


class Supervisor:
    """Owner of one worker process. Close it, or use it as a context manager.

    Attributes:
        losses: workers that died so far.
        started: workers that were started so far.
        holder: whose problem the worker has open.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """Starts nothing yet.

        Args:
            command: what to run; the number of a socket is added to it.
        """
        self._command = list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._errors: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self.losses = self.started = 0
        self.holder: object = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process, session and process group of the worker; None where none runs."""
        child = self._child
        return child.pid if child is not None and child.poll() is None else None

    def start(self) -> None:
        """Starts a worker without waiting for it; does nothing where one runs."""
        if self.pid is not None:
            return
        self.kill()
        mine, its = socket.socketpair()
        path = os.pathsep.join(part for part in sys.path if part)
        try:
            self._child = subprocess.Popen(
                [*self._command, str(its.fileno())],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[its.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            mine.close()
            raise MeasureError(
                f"cannot start a measuring process ({error}); --in-process does without"
            ) from error
        finally:
            its.close()
        self._channel = Channel(mine.detach())
        self.started += 1

    def ask(
        self,
        message: Mapping[str, Any],
        blobs: Sequence[bytes],
        seconds: float,
        read: Callable[[Mapping[str, Any]], T],
        on_news: Callable[[Mapping[str, Any]], None] = lambda news: None,
    ) -> T:
        """Sends a request to the worker that runs and waits for its answer.

        Args:
            message: the request.
            blobs: SPIR-V that belongs to it.
            seconds: until when the answer must be there.
            read: makes the result of the answer; a form that it refuses is the worker's fault.
            on_news: told what the worker says before it answers.

        Raises:
            IdleLossError: the worker died without having said that it begins.
            LostError: the worker is dead now, or the variant cannot run; says what it died of.
            MeasureError: the request itself cannot be answered, whatever the variant.
        """
        channel = self._channel
        if channel is None:
            raise MeasureError("no measuring process runs; start one first")
        self._errors.seek(0)
        self._errors.truncate()
        deadline = time.monotonic() + seconds
        oom, begun = _oom_kills(), False
        try:
            channel.send({**message, "seconds": seconds}, blobs)
            while True:
                if not channel.waiting(deadline - time.monotonic()):
                    raise _as_idle(self._hung(seconds), begun)
                answer, _ = channel.receive()
                if BEGUN in answer:
                    begun = True
                elif "turn" in answer:
                    on_news(answer)
                else:
                    break
            self._judge(answer)
            return _read(answer, read)
        except (EOFError, OSError):
            raise _as_idle(self._died(oom), begun) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.kill()
            self.losses += 1
            raise LostError(Outcome.CRASHED, f"the worker answered nonsense: {error}") from None
        except LostError:
            raise
        except BaseException:  # interrupted: its answer would be taken for the next one
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the worker and all it started, at once."""
        child, self._child = self._child, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if child is not None:
            _kill_group(child.pid)
            child.wait()

    def close(self) -> None:
        """Lets the worker end by itself; kills it where it does not. Nothing is started after."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_STOP_S)
        self.kill()
        self._errors.close()

    def _judge(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            raise MeasureError(str(answer["error"]))
        if "failed" in answer:
            raise LostError(Outcome(answer["failed"]), str(answer["reason"]))
        if "lost" in answer:
            outcome = Outcome(answer["lost"])
            self.kill()
            self.losses += 1
            raise LostError(outcome, str(answer["reason"]))

    def _hung(self, seconds: float) -> LostError:
        self.kill()
        self.losses += 1
        return LostError(Outcome.HUNG, f"no answer within {seconds:.1f} s; its process was killed")

    def _died(self, oom: int) -> LostError:
        """What the worker died of, by how its process ended."""
        self.losses += 1
        child = self._child
        assert child is not None
        try:
            code = child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            code = 0
        said = self._last_words()
        self.kill()
        if code == -signal.SIGKILL and _oom_kills() > oom:
            return LostError(Outcome.OUT_OF_MEMORY, "the system ended it: out of memory")
        if code == -signal.SIGABRT:
            return LostError(Outcome.ABORTED, f"its process called abort(){said}")
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            return LostError(Outcome.CRASHED, f"its process was ended by {name}{said}")
        return LostError(Outcome.ABORTED, f"its process ended with status {code}{said}")

    def _last_words(self) -> str:
        """The last line that the worker or its driver printed."""
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, end - _TAIL))
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""


def _as_idle(error: LostError, begun: bool) -> LostError:
    """The loss of a worker that had not begun with what it was asked."""
    return error if begun else IdleLossError(error.outcome, str(error))


def _read(answer: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return read(answer)
    except MeasureError as error:
        raise ValueError(str(error)) from None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _oom_kills() -> int:
    """How many processes the system ended for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
