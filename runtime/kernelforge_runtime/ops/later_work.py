"""The heavy part of loading, left until all of a model has its place; threads do it then.

What Python does for it, names, shapes and places, holds the interpreter. Rounding and copying do
not, but ask for it between every two of their passes: who adds jobs that begin at once has to let
them have it soon, see `turns`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

Job = Callable[[], object]
MOST_THREADS: Final = 4
"""Memory is what they share: more of them hardly add anything."""


class LaterWork:
    """Jobs in order, each of its own: none may need what another one does."""

    def __init__(self, at_once: bool = False) -> None:
        """No jobs yet.

        Args:
            at_once: whether threads begin with a job as soon as it is added, and `run` waits for
                what is left; `drop` then ends it where there is no `run`.
        """
        self._jobs: list[tuple[bool, Job]] = []
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "load") if at_once and threads > 1 else None

    def add(self, job: Job) -> None:
        """Something to be done, in any thread."""
        if self._pool is None:
            self._jobs.append((True, job))
        else:
            self._jobs.append((False, self._pool.submit(job).result))

    def tell(self, told: Job) -> None:
        """Something to be called by who calls `run`, once all jobs before it are done."""
        self._jobs.append((False, told))

    def run(self) -> None:
        """Does everything; raises what the first job raised that failed, and drops the others."""
        jobs, self._jobs = self._jobs, []
        threads = min(MOST_THREADS, os.cpu_count() or 1, sum(is_job for is_job, _ in jobs))
        if self._pool is None and threads > 1:
            self._pool = ThreadPoolExecutor(threads, "load")
        try:
            if self._pool is not None:
                jobs = [
                    (False, self._pool.submit(job).result if is_job else job)
                    for is_job, job in jobs
                ]
            for _, wait in jobs:
                wait()
        finally:
            self.drop()

    def drop(self) -> None:
        """Forgets what was not begun, and waits for what was; nothing where all is done."""
        self._jobs.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
