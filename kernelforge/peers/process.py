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
from typing import Any

from kernelforge.errors import PeerError

WORKERS = Path(__file__).with_name("workers")
_LAST_WORDS = 1 << 16


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
                )
            except OSError as error:
                raise PeerError(f"{python}: cannot be started: {error.strerror}") from None

    def ask(self, call: str, timeout_s: float, **arguments: Any) -> Any:
        """The answer to a request.

        Raises:
            PeerError: it failed, ended, or did not answer in time (and was killed).
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        line = b""
        try:
            stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
            stdin.flush()
            line = self._line(timeout_s)
        except BrokenPipeError:
            pass
        if not line:
            code = self._process.wait(timeout=10)
            raise PeerError(f"its process ended with status {code} in {call}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(str(answer["error"]))
        return answer["ok"]

    def _line(self, timeout_s: float) -> bytes:
        """The next line of its standard output, however many pieces it comes in."""
        stdout = self._process.stdout
        assert stdout is not None
        found, ends = b"", time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, ends - time.monotonic())):
                    self._process.kill()
                    raise PeerError(f"no answer in {timeout_s:.0f} s")
                piece = os.read(stdout.fileno(), 1 << 16)
                if not piece:
                    return b""
                found += piece
        return found

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._words.read_bytes()[-_LAST_WORDS:].decode(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()]
            for at, line in enumerate(said[:-1]):
                if "panicked at" in line:  # Rust: the reason follows, then a stack
                    return said[at + 1]
            if said:
                return said[-1]
        return "it said nothing"

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
