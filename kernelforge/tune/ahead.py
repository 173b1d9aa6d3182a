"""Compiles what the search will ask for next, while another process measures.

The guess may be wrong; then a compiled variant lies in the cache for later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from kernelforge.compile import compile_variant
from kernelforge.family import KernelFamily
from kernelforge_runtime.dtypes import DType
from kernelforge_runtime.errors import KernelForgeError

log = logging.getLogger(__name__)

Params = Mapping[str, Any]


class Ahead:
    """Compiles in threads of its own; use it as a context manager.

    Args:
        family: what is tuned.
        precision: in which precision.
        threads: how many at once; 0 compiles nothing.
    """

    def __init__(self, family: KernelFamily, precision: DType, threads: int = 1) -> None:
        self._family, self._precision = family, precision
        self._pool = ThreadPoolExecutor(threads, "compile ahead") if threads else None
        self._last: Future[None] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def want(self, guess: Callable[[], Iterable[Params]]) -> None:
        """Compiles what `guess` gives, later; while it still compiles for an earlier call, not."""
        if self._pool is None or (self._last is not None and not self._last.done()):
            return
        self._last = self._pool.submit(self._compile, guess)

    def _compile(self, guess: Callable[[], Iterable[Params]]) -> None:
        for params in guess():
            try:
                compile_variant(self._family, self._precision, params)
            except (KernelForgeError, OSError) as error:  # its own trial will say so
                log.debug("compiling ahead: %s", error)
