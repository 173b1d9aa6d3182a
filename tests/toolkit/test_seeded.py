"""Proposals from elsewhere: followed while they help, never more than 70 % of a search."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from kernelforge.tune.acquisition import Proposer
from kernelforge.tune.sampler import EnumeratedSampler
from kernelforge.tune.seeded import SeededProposer

CONFIGS = [{"A": a, "B": b} for a in range(20) for b in range(20)]
DEFAULT = 399


def search(
    seeds: list[int], times: dict[int, float], trials: int, seed: int = 0, first: bool = True
) -> list[int]:
    """What is tried; a configuration without a time of its own takes 10 and a little."""
    own = Proposer(CONFIGS, [DEFAULT] if first else [])
    proposer = SeededProposer(own, [DEFAULT] if first else [], seeds)
    seen: dict[int, float | None] = {}
    for number in range(trials):
        index = proposer.propose(seen, np.random.default_rng([seed, number]))
        assert index is not None
        assert index not in seen
        seen[index] = times.get(index, 10 + index / 1000)
    return list(seen)


@pytest.mark.parametrize("first", [True, False])
def test_of_any_first_trials_at_most_seventy_percent_are_seeds(first: bool) -> None:
    seeds = list(range(60))
    tried = search(seeds, dict.fromkeys(seeds, 1.0), 100, first=first)
    seeded = np.cumsum([index in seeds for index in tried])
    assert all(10 * count <= 7 * n for n, count in enumerate(seeded, 1))
    assert seeded[-1] == 60  # and they do come


def test_the_default_comes_first_then_the_seeds_in_their_order() -> None:
    seeds = [7, 3, 200, 11]
    tried = search(seeds, dict.fromkeys(seeds, 1.0), 9)
    assert tried[:3] == [DEFAULT, 7, 3]
    assert [index for index in tried if index in seeds] == seeds


@pytest.mark.parametrize("bad", [20.0, math.inf])
def test_seeds_that_do_no_better_than_random_draws_are_followed_no_further(bad: float) -> None:
    seeds = list(range(8))
    by_chance = 0
    for seed in range(10):
        tried = search(seeds, dict.fromkeys(seeds, bad), 9, seed)
        assert tried[:3] == [DEFAULT, 0, 1]
        by_chance += len(set(tried[3:]) & set(seeds))
    assert by_chance <= 4  # of 60 draws, each from 398 of which 6 are seeds


def test_seeds_are_followed_while_they_are_as_fast_and_no_further_than_a_slower_one() -> None:
    times = {0: 3.0, 105: 2.0, 33: 2.05, 212: 1.0, 318: 1.2, 159: 0.5}
    for seed in range(5):
        tried = search(list(times), times, 9, seed)
        assert [index for index in tried if index in times] == [0, 105, 33, 212, 318]


def test_seeds_that_do_not_fit_cost_a_search_few_of_its_first_trials() -> None:
    """They are better than most of a space, as another device's winners are, but not good in it."""
    slow = (12.0, 9.0, 14.0, 7.0, 13.0, 12.0, 11.0, 10.0)
    good = {"with": 0, "without": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fast = rng.random(400) < 0.1  # and nothing near them tells
        times = {i: float(rng.uniform(1, 2)) if fast[i] else 20.0 for i in range(400)}
        seeds = [i for i in range(400) if not fast[i]][:8]
        times.update(zip(seeds, slow, strict=True))
        for name, some in (("with", seeds), ("without", [])):
            tried = search(some, times, 9, seed)
            good[name] += min(times[i] for i in tried if i != DEFAULT) < 3
        helped = search(seeds, times, 6, seed)
        assert len({*helped} & {*seeds}) <= 3
    # Three of eight trials are lost to them, where five were before there was this guard.
    assert good["with"] >= 0.8 * good["without"]


def test_where_everything_fails_the_seeds_are_no_better_and_the_search_goes_on() -> None:
    tried = search(list(range(8)), dict.fromkeys(range(400), math.inf), 40)
    assert len(tried) == 40
    assert not set(tried[3:9]) & set(range(2, 8))


def test_a_set_of_seeds_alone_is_still_searched_whole() -> None:
    configs = CONFIGS[:4]
    sampler = EnumeratedSampler(configs, configs[:1], configs)
    study = optuna.create_study(sampler=sampler)
    asked = []
    for _ in configs:
        trial = study.ask(sampler.space)
        asked.append(trial.params)
        study.tell(trial, 1.0)
    assert asked[0] == configs[0]
    assert all(params in asked for params in configs)


def test_a_resumed_search_comes_to_the_same_decisions() -> None:
    seeds, times = [5, 6, 7, 8], dict.fromkeys([5, 6, 7, 8], 2.0)
    whole = search(seeds, times, 12)
    own = Proposer(CONFIGS, [DEFAULT])
    for n in range(1, 12):
        seen = {index: times.get(index, 10 + index / 1000) for index in whole[:n]}
        again = SeededProposer(own.copy(), [DEFAULT], seeds)
        if n < 8:  # later ones come from a model, which learns on the way
            assert again.propose(seen, np.random.default_rng([0, n])) == whole[n]


def test_a_copy_is_asked_without_the_original_learning_from_it() -> None:
    one = SeededProposer(Proposer(CONFIGS), [], [4, 5])
    other = one.copy()
    seen: dict[int, float | None] = {index: 1.0 + index for index in range(0, 300, 9)}
    for number in range(3):
        other.propose(seen, np.random.default_rng(number))
    fresh = SeededProposer(Proposer(CONFIGS), [], [4, 5])
    rng, same = np.random.default_rng(1), np.random.default_rng(1)
    assert one.propose(seen, rng) == fresh.propose(seen, same)


def searched_late(
    late: list[int], times: dict[int, float], trials: int, seed: int = 0
) -> list[int]:
    """As `search`, with configurations of other kinds of devices and no others."""
    proposer = SeededProposer(Proposer(CONFIGS, [DEFAULT]), [DEFAULT], late=late)
    seen: dict[int, float | None] = {}
    for number in range(trials):
        index = proposer.propose(seen, np.random.default_rng([seed, number]))
        assert index is not None
        assert index not in seen
        seen[index] = times.get(index, 10 + index / 1000)
    return list(seen)


def test_what_other_kinds_of_devices_like_comes_after_the_random_start_and_in_turns() -> None:
    late = [7, 3, 200, 11]
    tried = searched_late(late, dict(zip(late, (4.0, 3.0, 2.0, 1.0), strict=True)), 14, 1)
    assert [number for number, index in enumerate(tried) if index in late] == [5, 7, 9, 11]
    assert [index for index in tried if index in late] == late


@pytest.mark.parametrize("bad", [9.9, 20.0, math.inf])
def test_of_what_other_kinds_of_devices_like_in_vain_one_trial_is_all(bad: float) -> None:
    """Not even faster than the default is in vain, whatever random draws say."""
    late = [3, 61, 127, 188, 242, 301, 333, 366]
    times = {**dict.fromkeys(late, bad), DEFAULT: 5.0}
    by_chance = 0
    for seed in range(6):
        tried = searched_late(late, times, 12, seed)
        without = searched_late([], times, 12, seed)
        assert tried[:5] == without[:5]
        by_chance += len({*tried} & {*late}) - 1
    assert by_chance <= 3


def test_a_second_one_that_is_clearly_slower_ends_them() -> None:
    late = [7, 3, 200, 11]
    tried = searched_late(late, {7: 2.0, 3: 2.5, 200: 1.0, 11: 1.0}, 9, 1)
    assert [index for index in tried if index in late] == [7, 3]


def test_with_seeds_of_its_own_a_search_tries_those_first() -> None:
    own = Proposer(CONFIGS, [DEFAULT])
    proposer = SeededProposer(own, [DEFAULT], [5, 6], late=[7, 6, 8])
    seen: dict[int, float | None] = {}
    for number in range(12):
        index = proposer.propose(seen, np.random.default_rng([3, number]))
        assert index is not None
        seen[index] = {5: 4.0, 6: 3.0, 7: 2.0, 8: 1.0}.get(index, 10 + index / 1000)
    tried = list(seen)
    assert tried[:3] == [DEFAULT, 5, 6]
    assert [index for index in tried if index in (5, 6, 7, 8)] == [5, 6, 7, 8]
