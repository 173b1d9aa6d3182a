"""Every way of searching a recorded space, ours and others', behind one call."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from kernelforge.cli.options import UsageError
from kernelforge.errors import PeerError
from kernelforge.peers.searches import KERNEL_TUNER, PeerSearches, kernel_tuner_searches
from kernelforge.tune import plain_optuna
from kernelforge.tune.acquisition import Strategy
from kernelforge.tune.experience import Experience
from kernelforge.tune.finished_runs import SEEDING, FinishedRun, FinishedRuns, own_searcher
from kernelforge.tune.recorded import RecordedSpace
from kernelforge.tune.replay import replay

Search = Callable[[int, int], NDArray[np.float64]]
WITH = " + portfolio"
"""Behind the name of a strategy of ours that begins with what the other spaces know."""
OTHERS: dict[str, tuple[str, ...]] = {
    "optuna": get_args(plain_optuna.Suggest),
    "kernel_tuner": KERNEL_TUNER,
}


class Searchers:
    """Searches of one space; those that were run before are not run again.

    Args:
        space: what is searched.
        runs: what was run before; every new search is added.
        python: the interpreter that has the other tuners.
        say: told, once, why another tuner is left out.
        experience: what a strategy `WITH` a portfolio begins with; None if that is never asked.
    """

    def __init__(
        self,
        space: RecordedSpace,
        runs: FinishedRuns,
        python: str | None,
        say: Callable[[str], None],
        experience: Experience | None = None,
    ) -> None:
        self._space, self._runs, self._python, self._say = space, runs, python, say
        self._stack = contextlib.ExitStack()
        self._peer: PeerSearches | None = None
        self._left_out = False
        self._ours, self._experience = own_searcher(), experience

    @staticmethod
    def named(text: str) -> tuple[str, ...]:
        """The searches that `--against` names.

        Raises:
            UsageError: there is no such tuner, or it has no such way.
        """
        found: list[str] = []
        for word in filter(None, text.split(",")):
            tuner, _, way = word.partition(":")
            ways = OTHERS.get(tuner)
            if ways is None:
                raise UsageError(f"--against {word}: there are {', '.join(OTHERS)}")
            if way and way not in ways:
                raise UsageError(f"--against {word}: {tuner} has {', '.join(ways)}")
            found += [f"{tuner}:{each}" for each in ((way,) if way else ways)]
        return tuple(dict.fromkeys(found))

    def searcher(self, name: str) -> str:
        """What searches under this name, with its version; empty where it is not there."""
        return self._search(name)[0]

    def runs(
        self, name: str, evaluations: int, seeds: int, show: Callable[[int, int, str], None]
    ) -> list[FinishedRun]:
        """A search of each seed, from 0; none where its tuner is not there.

        Args:
            name: of the strategy.
            evaluations: of each search.
            seeds: how many.
            show: told before each which one, of how many, and of what.
        """
        finished: list[FinishedRun] = []
        for seed in range(seeds):
            show(seed, seeds, f"{self._space.name} {name}")
            one = self.run(name, evaluations, seed)
            if one is None:
                break
            finished.append(one)
        return finished

    def run(self, name: str, evaluations: int, seed: int) -> FinishedRun | None:
        """One search; None where its tuner is not there."""
        searcher, search = self._search(name)
        if search is None:
            return None
        evaluations = min(evaluations, len(self._space.configs))
        known = self._runs.get(self._space, name, searcher, seed, evaluations)
        if known is not None:
            return known
        started = time.process_time()
        try:
            curve = search(evaluations, seed)
        except PeerError as error:
            self._say(f"{name} on {self._space.name} is left out: {error}")
            return None
        cpu_s = math.nan if self._is_peer(name) else time.process_time() - started
        done = FinishedRun(curve, cpu_s, searcher)
        self._runs.add(self._space, name, seed, done)
        return done

    def _search(self, name: str) -> tuple[str, Search | None]:
        """What searches, with its version, and how to call it with evaluations and seed."""
        space = self._space
        tuner, _, way = name.partition(":")
        if self._is_peer(name):
            peer = self._kernel_tuner()
            if peer is None:
                return "", None
            return peer.version, lambda most, seed: peer.run(way, most, seed)
        if tuner == "optuna":
            suggest = cast(plain_optuna.Suggest, way)
            version = plain_optuna.version()
            return version, lambda most, seed: plain_optuna.replay_optuna(
                space, suggest, most, seed
            )
        strategy = cast(Strategy, name.removesuffix(WITH))
        experience = self._experience
        if name.endswith(WITH) and experience is not None:
            ours = f"{own_searcher(SEEDING)} from {experience.digest}"
            return ours, lambda most, seed: replay(space, strategy, most, seed, experience)
        return self._ours, lambda most, seed: replay(space, strategy, most, seed)

    @staticmethod
    def _is_peer(name: str) -> bool:
        return name.startswith("kernel_tuner:")

    def _kernel_tuner(self) -> PeerSearches | None:
        """It on this space, started when it is first asked for."""
        if self._peer is None and not self._left_out:
            try:
                self._peer = self._stack.enter_context(
                    kernel_tuner_searches(self._space, self._python)
                )
            except PeerError as error:
                self._left_out = True
                self._say(f"kernel_tuner is left out: {error}")
        return self._peer

    def __enter__(self) -> Searchers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
