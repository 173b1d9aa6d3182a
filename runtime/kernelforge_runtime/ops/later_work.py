"""The heavy part of loading, left until all of a model has its place; threads do it then.

What Python does for it, names, shapes and places, holds the interpreter. Rounding and copying do
not, but ask for it between every two of their passes, and wait where somebody else has it: so they
are for later, and threads meanwhile do what hardly needs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, Final, TypeVar

Job = Callable[[], object]
T = TypeVar("T")
MOST_THREADS: Final = 4
"""Memory is what they share: more of them hardly add anything."""


class LaterWork:
    """Jobs in order, each of its own: none may need what another one does.

    Threads do not begin with them before `run`, but for those that are given to `begin`; `drop`
    ends it where there is no `run`.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[bool, Job]] = []
        self._pool: ThreadPoolExecutor | None = None
        self._begun: list[Future[Any]] = []

    def begin(self, job: Callable[[], T]) -> Callable[[], T]:
        """Something that a thread begins with as soon as one is free, or that is done at once.

        Returns:
            What waits for it, and gives what it gave or raises what it raised.
        """
        pool = self._threads(2)
        if pool is not None:
            self._begun.append(pool.submit(job))
            return self._begun[-1].result
        found = job()
        return lambda: found

    def add(self, job: Job) -> None:
        """Something to be done, in any thread."""
        self._jobs.append((True, job))

    def tell(self, told: Job) -> None:
        """Something to be called by who calls `run`, once all jobs before it are done."""
        self._jobs.append((False, told))

    def run(self) -> None:
        """Does everything; raises what the first job raised that failed, and drops the others."""
        jobs, self._jobs = self._jobs, []
        try:
            pool = self._pool or self._threads(sum(is_job for is_job, _ in jobs))
            if pool is not None:
                jobs = [(False, pool.submit(job).result if is_job else job) for is_job, job in jobs]
            for _, wait in jobs:
                wait()
            wait_for(self._begun)  # what they raise is for whoever asks for what they gave
        finally:
            self.drop()

    def drop(self) -> None:
        """Forgets what was not begun, and waits for what was; nothing where all is done."""
        self._jobs.clear()
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _threads(self, jobs: int) -> ThreadPoolExecutor | None:
        """Threads for so many jobs at a time; None where one does them as well."""
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        if self._pool is None and min(threads, jobs) > 1:
            self._pool = ThreadPoolExecutor(threads, "load")
        return self._pool
