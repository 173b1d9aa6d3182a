"""An Optuna sampler over an enumerated set of valid configurations.

A sampler that draws each parameter by itself proposes mostly configurations that break a constraint
or were tried before. This one only ever proposes members of a given set, each once, whichever
model of `acquisition` chooses; Optuna keeps the history, the storage and the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kernelforge.errors import TuneError
from kernelforge.tune.acquisition import RANDOM_FIRST, Proposer, Strategy
from kernelforge.tune.seeded import SeededProposer

ABANDONED = "abandoned"
"""User attribute of a trial that never ended (its process was killed): it counts as not tried."""

_Frozen = tuple[tuple[str, Any], ...]


class ExhaustedError(TuneError):
    """Every valid configuration was tried: the search is complete."""


class EnumeratedSampler(BaseSampler):
    """Proposes configurations of a fixed set, none twice.

    Args:
        configs: the valid set; all with the same parameter names.
        first: configurations to try before anything else, in order; those that are not in the set
            are left out.
        seeds: configurations that won elsewhere, the most promising first: tried early, under the
            guards of `seeded`.
        strategy: see `acquisition`.
        random_first: random proposals after `first`.
        seed: the same seed and history give the same proposal.
        late: configurations that won on other devices only: tried once there are others to hold
            them against, see `seeded`.

    Raises:
        TuneError: the set is empty.
    """

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        first: Sequence[Mapping[str, Any]] = (),
        seeds: Sequence[Mapping[str, Any]] = (),
        strategy: Strategy = "mixed",
        random_first: int = RANDOM_FIRST,
        seed: int = 0,
        late: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        if not configs:
            raise TuneError("nothing to tune: no configuration is valid for this device")
        self._configs = [dict(c) for c in configs]
        self._index = {_freeze(c): i for i, c in enumerate(self._configs)}
        wanted, helpful = self._known(first), self._known(seeds)
        # A small set is covered anyway; a long random start would only delay its good part.
        random_first = min(random_first, max(2, len(self._configs) // 5))
        own = Proposer(self._configs, wanted, strategy, random_first)
        self._proposer = SeededProposer(own, wanted, helpful, random_first, self._known(late))
        self._seed = seed
        self._given: int | None = None
        self.space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(_values(self._configs, name)) for name in self._configs[0]
        }

    @property
    def size(self) -> int:
        """Number of valid configurations."""
        return len(self._configs)

    def _known(self, configs: Sequence[Mapping[str, Any]]) -> list[int]:
        return [self._index[_freeze(c)] for c in configs if _freeze(c) in self._index]

    def params(self, index: int) -> dict[str, Any]:
        """The configuration of a number."""
        return dict(self._configs[index])

    @contextmanager
    def given(self, index: int) -> Iterator[None]:
        """Proposes meanwhile this configuration; whoever asks must know that nobody tried it."""
        self._given = index
        try:
            yield
        finally:
            self._given = None

    def seen(self, trials: Sequence[FrozenTrial]) -> dict[int, float | None]:
        """Index -> time of everything tried: inf for failures, None for what is still running."""
        found: dict[int, float | None] = {}
        for trial in trials:
            index = self._index.get(_freeze(trial.params))
            if index is None or ABANDONED in trial.user_attrs:
                continue
            if trial.state == TrialState.COMPLETE and trial.value is not None:
                found[index] = trial.value
            elif trial.state in (TrialState.FAIL, TrialState.PRUNED):
                found.setdefault(index, float("inf"))
            elif trial.state == TrialState.RUNNING:
                found.setdefault(index, None)
        return found

    def likely_next(self, trials: Sequence[FrozenTrial]) -> Iterator[dict[str, Any]]:
        """Guesses of what will be proposed after these trials, some of which still run.

        Right while the first configurations are tried, or random ones where nothing fails; later
        the results that are still missing may turn the search elsewhere.
        """
        number = max((t.number for t in trials), default=-1) + 1
        seen = self.seen(trials)
        proposer = self._proposer.copy()
        while True:
            index = proposer.propose(seen, np.random.default_rng([self._seed, number]))
            if index is None:
                return
            yield dict(self._configs[index])
            seen[index], number = None, number + 1

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every parameter: they are always chosen together."""
        return dict(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One configuration of the set that no other trial has.

        Raises:
            ExhaustedError: all of them were tried.
        """
        if self._given is not None:
            return self.params(self._given)
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        rng = np.random.default_rng([self._seed, trial.number])
        index = self._proposer.propose(self.seen(others), rng)
        if index is None:
            raise ExhaustedError(f"all {self.size} valid configurations were tried")
        return dict(self._configs[index])

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never right: a parameter by itself need not make a valid configuration.

        Raises:
            TuneError: always.
        """
        raise TuneError(f"parameter {param_name} is not part of the enumerated space")


def _freeze(config: Mapping[str, Any]) -> _Frozen:
    return tuple(sorted(config.items()))


def _values(configs: Sequence[Mapping[str, Any]], name: str) -> tuple[Any, ...]:
    values = {c[name] for c in configs}
    if all(isinstance(v, int | float) for v in values):
        return tuple(sorted(values))
    return tuple(sorted(values, key=str))
