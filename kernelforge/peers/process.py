"""A peer in a process of its own, so that neither its threads nor its crash are ours."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from kernelforge.errors import PeerError
from kernelforge.measure.journal_lines import name

WORKERS = Path(__file__).with_name("workers")
MOST_BYTES = 64 << 20
"""Of an answer: fifty times the logits of the largest vocabulary there is."""
MOST_NUMBER = 1e15
MOST_WORDS = 400
LONGEST_LABEL = 200
_LAST_WORDS = 1 << 16
_GRACE_S = 5.0


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class PeerProcess:
    """Sends requests to a worker, one at a time.

    Raises:
        PeerError: the interpreter cannot be started.
    """

    def __init__(
        self,
        worker: str,
        folder: Path,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.worker = worker
        self._words = folder / f"{worker}.stderr"
        with self._words.open("wb") as words:
            try:
                self._process = subprocess.Popen(
                    [python or sys.executable, str(WORKERS / f"{worker}.py")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    env={**os.environ, **(environment or {})},
                    bufsize=0,
                )
                assert self._process.stdin is not None
                os.set_blocking(self._process.stdin.fileno(), False)
            except OSError as error:
                raise PeerError(f"{python}: cannot be started: {error.strerror}") from None

    def ask(self, call: str, timeout_s: float, **arguments: Any) -> Any:
        """The answer to a request.

        Raises:
            PeerError: it failed, ended, said something else, or did not answer in time; in the
                last two cases it was killed.
        """
        ends = time.monotonic() + timeout_s
        heard = True
        try:
            self._send(json.dumps({"call": call, **arguments}).encode() + b"\n", ends, timeout_s)
        except BrokenPipeError:  # nobody reads any more: what it said before may tell why
            heard, timeout_s = False, min(timeout_s, _GRACE_S)
            ends = time.monotonic() + timeout_s
        line = self._line(ends, timeout_s)
        answer = self._answer(call, line) if line else None
        if not line or not heard:
            raise PeerError(
                f"its process ended with status {self._status()} in {call}: {self._last_words()}"
            )
        return answer

    def ask_number(self, call: str, timeout_s: float, **arguments: Any) -> float:
        """The answer to a request for a number above 0; see `ask` for what else it raises.

        Raises:
            PeerError: the answer is none.
        """
        found = self.ask(call, timeout_s, **arguments)
        number = isinstance(found, (int, float)) and not isinstance(found, bool)
        if not number or not 0 < found < MOST_NUMBER:
            raise PeerError(f"it answered {call} with {_cut(found)}, expected a number above 0")
        return float(found)

    def ask_label(self, call: str, timeout_s: float, **arguments: Any) -> str:
        """The answer to a request for a name; see `ask` for what else it raises.

        Raises:
            PeerError: the answer is none.
        """
        found = self.ask(call, timeout_s, **arguments)
        if not isinstance(found, str) or not found.strip() or len(found) > LONGEST_LABEL:
            raise PeerError(f"it answered {call} with {_cut(found)}, expected its name")
        return name(found)

    def _send(self, data: bytes, ends: float, timeout_s: float) -> None:
        """Without waiting for ever for a process that does not read."""
        stdin = self._process.stdin
        assert stdin is not None
        left = memoryview(data)
        while left:
            self._wait_for(stdin, selectors.EVENT_WRITE, ends, timeout_s)
            left = left[os.write(stdin.fileno(), left) :]

    def _line(self, ends: float, timeout_s: float) -> bytes:
        """The next line of its standard output, however many pieces it comes in."""
        stdout = self._process.stdout
        assert stdout is not None
        found = bytearray()
        while not found.endswith(b"\n"):
            self._wait_for(stdout, selectors.EVENT_READ, ends, timeout_s)
            piece = os.read(stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            found += piece
            if len(found) > MOST_BYTES or b"\n" in piece[:-1]:
                break  # no answer of a worker's: `_answer` says so
        return bytes(found)

    def _wait_for(self, pipe: IO[bytes], event: int, ends: float, timeout_s: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, ends - time.monotonic())):
                self._process.kill()
                raise PeerError(f"no answer in {timeout_s:.0f} s")

    def _answer(self, call: str, line: bytes) -> Any:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"ok", "error"}:
            self._process.kill()  # whatever comes next would be taken for the next answer
            said = _cut(line.decode(errors="replace"))
            raise PeerError(f"it answered {call} with {said}: is it a Python with the package?")
        if "error" in answer:
            raise PeerError(" ".join(str(answer["error"]).split())[:MOST_WORDS])
        return answer["ok"]

    def _status(self) -> int:
        """Of a process that says no more: it is ended if it did not end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=_GRACE_S)
        self._process.kill()
        return self._process.wait()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._words.read_bytes()[-_LAST_WORDS:].decode(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            for at, line in enumerate(said[:-1]):
                if "panicked at" in line:  # Rust: the reason follows, then a stack
                    return said[at + 1]
            if said:
                return said[-1][:MOST_WORDS]
        return "it said nothing"

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
