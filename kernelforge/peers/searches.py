"""Another tuner's searches on a recorded space, in a process of its own."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import PeerError, TuneError
from kernelforge.peers.process import PeerProcess
from kernelforge.tune.recorded import RecordedSpace, write_cache

KERNEL_TUNER = (
    "hybrid_vndx",
    "adaptive_tabu_greywolf",
    "genetic_algorithm",
    "greedy_ils",
    "simulated_annealing",
    "bayes_opt",
)
"""Its strategies that did best on recorded spaces, and the classical ones among them."""
START_S = 300.0
SEARCH_S = 1800.0


class PeerSearches:
    """kernel_tuner on one space.

    Attributes:
        version: what searches.
    """

    def __init__(self, process: PeerProcess, version: str) -> None:
        self._process, self.version = process, version

    def run(self, strategy: str, evaluations: int, seed: int) -> NDArray[np.float64]:
        """[evaluations] best time in ms so far, like `tune.replay.replay`.

        A strategy that ends before its evaluations are spent keeps what it has.

        Raises:
            PeerError: it failed, or knows no such strategy.
        """
        times = self._process.ask(
            "search", SEARCH_S, strategy=strategy, seed=seed, evaluations=evaluations
        )
        curve = np.full(evaluations, math.inf)
        try:
            curve[: len(times)] = [math.inf if time is None else time for time in times]
        except (TypeError, ValueError):
            raise PeerError(f"what {strategy} found is no list of times") from None
        return np.minimum.accumulate(curve)


@contextlib.contextmanager
def kernel_tuner_searches(space: RecordedSpace, python: str | None) -> Iterator[PeerSearches]:
    """Gives a space to kernel_tuner.

    Args:
        space: what is searched.
        python: the interpreter that has kernel_tuner; this one by default.

    Raises:
        PeerError: it is not there, its process cannot be started, or its form of cache cannot
            hold the space.
    """
    with tempfile.TemporaryDirectory(prefix="kernelforge-searches-") as folder:
        path = Path(folder) / "cache.json"
        try:
            write_cache(space, path)
        except TuneError as error:
            raise PeerError(str(error)) from None
        process = PeerProcess("kernel_tuner_searches", Path(folder), python)
        try:
            version = process.ask_label("load", START_S, path=str(path))
            yield PeerSearches(process, version)
        finally:
            process.close()
