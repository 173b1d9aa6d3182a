"""What every worker shares: requests as JSON lines on standard input, answers on standard output.

Run by the peer's own Python, which need not have KernelForge: nothing here imports it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

MOST = 400
"""Characters of an error that are passed on."""
Handler = Callable[..., Any]


def serve(handlers: dict[str, Handler]) -> None:
    """Answers until standard input ends.

    A request is `{"call": name, ...}`, an answer `{"ok": value}` or `{"error": text}`. What the
    peer itself prints goes to standard error, so that it cannot be taken for an answer.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": handlers[request.pop("call")](**request)}
        except Exception as error:  # whatever a foreign library raises is the peer's answer
            said = " ".join(str(error).split())  # a compiler's whole log, where one fails
            answer = {"error": f"{type(error).__name__}: {said}"[:MOST]}
        answers.write(json.dumps(answer) + "\n")


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a piece of work."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
