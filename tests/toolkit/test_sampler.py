"""The sampler over an enumerated set: no ask is wasted, and it finds good ones soon."""

from __future__ import annotations

import itertools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from kernelforge.errors import TuneError
from kernelforge.tune.acquisition import Proposer, Strategy, _normal_scores
from kernelforge.tune.encoded import Encoded
from kernelforge.tune.sampler import ABANDONED, EnumeratedSampler, ExhaustedError

SPACES = Path(__file__).parents[2] / ".." / "shared" / "data" / "spaces"


def grid() -> list[dict[str, Any]]:
    """A constrained space of 200 with numbers, a flag and a word."""
    return [
        {"WORKGROUP": w, "ROWS": r, "VEC": v, "FAST": f, "REDUCE": kind}
        for w, r, v, f, kind in itertools.product(
            (16, 32, 64, 128, 256), (1, 2, 4, 8), (1, 2, 4), (False, True), ("tree", "sub", "none")
        )
        if w * r <= 512 and not (f and v == 1)
    ]


def landscape(config: dict[str, Any]) -> float:
    """Time with one best place and parameters that matter unlike; positive."""
    time = 10.0
    time *= 1 + 0.3 * abs(np.log2(config["WORKGROUP"] / 64))
    time *= 1 + 0.5 * abs(np.log2(config["ROWS"] / 4))
    time *= {1: 1.6, 2: 1.2, 4: 1.0}[config["VEC"]]
    time *= {"tree": 1.1, "sub": 1.0, "none": 1.5}[config["REDUCE"]]
    return float(time * (0.9 if config["FAST"] else 1.0))


def search(
    sampler: EnumeratedSampler, trials: int, study: optuna.Study | None = None
) -> list[dict[str, Any]]:
    study = study or optuna.create_study(sampler=sampler)
    asked = []
    for _ in range(trials):
        trial = study.ask(sampler.space)
        asked.append(trial.params)
        study.tell(trial, landscape(trial.params))
    return asked


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_every_ask_is_valid_and_new_until_all_are_tried() -> None:
    configs = grid()[:60]
    sampler = EnumeratedSampler(configs)
    study = optuna.create_study(sampler=sampler)
    asked = search(sampler, len(configs), study)
    assert all(params in configs for params in asked)
    assert len({json.dumps(p, sort_keys=True) for p in asked}) == len(configs)
    with pytest.raises(ExhaustedError, match="60"):
        study.ask(sampler.space)


def test_the_default_and_warm_starts_come_first() -> None:
    configs = grid()
    first = [configs[40], configs[7], {"WORKGROUP": 3}]
    asked = search(EnumeratedSampler(configs, first), 3)
    assert asked[:2] == first[:2]


@pytest.mark.parametrize("strategy", ["mixed", "gp", "tpe"])
def test_it_comes_within_five_percent_of_the_best_in_thirty_asks(strategy: Strategy) -> None:
    configs = grid()
    best = min(map(landscape, configs))
    reached = []
    for seed in range(5):
        asked = search(EnumeratedSampler(configs, strategy=strategy, seed=seed), 30)
        reached.append(best / min(map(landscape, asked)))
    assert np.median(reached) >= 0.95


def test_the_same_seed_gives_the_same_search() -> None:
    one, two = (search(EnumeratedSampler(grid(), seed=5), 20) for _ in range(2))
    assert one == two


def asks_to_good(strategy: Strategy, seed: int) -> int:
    """Asks until one is within 5 % of the best."""
    configs = grid()
    bar = min(map(landscape, configs)) / 0.95
    sampler = EnumeratedSampler(configs, strategy=strategy, seed=seed)
    study = optuna.create_study(sampler=sampler)
    for number in range(1, 61):
        if landscape(search(sampler, 1, study)[0]) <= bar:
            return number
    return 60


def test_it_needs_a_third_of_what_random_draws_need() -> None:
    needed = {
        strategy: sum(asks_to_good(strategy, seed) for seed in range(6))
        for strategy in ("mixed", "random")
    }
    assert needed["mixed"] <= needed["random"] / 3


def test_workers_side_by_side_are_given_different_configurations() -> None:
    configs = grid()[:40]
    sampler = EnumeratedSampler(configs)
    study = optuna.create_study(sampler=sampler)
    asked = []
    for _ in range(8):
        together = [study.ask(sampler.space) for _ in range(5)]
        asked += [json.dumps(trial.params, sort_keys=True) for trial in together]
        for trial in together:
            study.tell(trial, landscape(trial.params))
    assert len(set(asked)) == len(configs)


def test_a_resumed_search_goes_on_where_it_was_left() -> None:
    configs = grid()
    study = optuna.create_study(sampler=(sampler := EnumeratedSampler(configs, seed=2)))
    before = search(sampler, 12, study)
    study.sampler = EnumeratedSampler(configs, seed=2)
    asked = before + search(study.sampler, 12, study)
    assert len({json.dumps(p, sort_keys=True) for p in asked}) == 24
    known = min(map(landscape, before))
    # No new start: what it tries from the first ask on is better than what random draws are.
    typical = np.median([landscape(c) for c in configs])
    assert np.median([landscape(c) for c in asked[12:]]) < typical
    assert min(map(landscape, asked)) <= known


def test_the_first_ones_lie_far_apart() -> None:
    encoded = Encoded(grid())

    def least_distance(strategy: Strategy, seed: int) -> float:
        proposer = Proposer(encoded, strategy=strategy)
        seen: dict[int, float | None] = {}
        for number in range(4):
            index = proposer.propose(seen, np.random.default_rng([seed, number]))
            assert index is not None
            seen[index] = None
        tried = np.array(list(seen))
        return float((encoded.distances(tried, tried).sum(axis=0) + 9 * np.eye(4)).min())

    apart = {
        way: np.mean([least_distance(way, seed) for seed in range(10)]) for way in ("mixed", "gp")
    }
    assert apart["mixed"] > 1.3 * apart["gp"]


def test_the_ranks_of_times_are_the_same_under_whatever_keeps_their_order() -> None:
    times = np.array([3.0, 1.0, 50.0, 2.0, 50.0, 50.0])
    scores = _normal_scores(times)
    assert np.array_equal(scores, _normal_scores(np.log(times)))
    assert scores[1] < scores[3] < scores[0] < scores[2] == scores[4] == scores[5]
    assert abs(scores.mean()) < 1e-12


def test_failures_are_not_asked_again_and_abandoned_trials_are() -> None:
    configs = grid()[:3]
    sampler = EnumeratedSampler(configs, first=configs)
    study = optuna.create_study(sampler=sampler)
    failed = study.ask(sampler.space)
    study.tell(failed, state=TrialState.FAIL)
    killed = study.ask(sampler.space)
    killed.set_user_attr(ABANDONED, "killed")
    study.tell(killed, state=TrialState.FAIL)
    assert study.ask(sampler.space).params == killed.params == configs[1]


def test_a_history_of_failures_only_is_searched_on() -> None:
    proposer = Proposer(grid())
    seen: dict[int, float | None] = {}
    for number in range(40):
        index = proposer.propose(seen, np.random.default_rng(number))
        assert index is not None
        assert index not in seen
        seen[index] = float("inf")


def test_an_empty_set_is_a_named_error() -> None:
    with pytest.raises(TuneError, match="nothing to tune"):
        EnumeratedSampler([])


def test_numbers_are_ordered_and_words_are_all_alike_far() -> None:
    encoded = Encoded([{"A": 1, "R": "x"}, {"A": 2, "R": "y"}, {"A": 8, "R": "z"}])
    everything = np.arange(3)
    number, word = encoded.distances(everything, everything)
    assert number[0, 1] < number[0, 2]
    assert word[0, 1] == word[0, 2] == word[1, 2] == 1.0


def recorded(name: str) -> tuple[list[dict[str, Any]], np.ndarray[Any, np.dtype[np.float64]]]:
    path = SPACES / name
    if not path.is_file():
        pytest.skip(f"recorded spaces are not here: {path}")
    with np.load(path) as data:
        times = np.median(data["times_ms"], axis=1).astype(np.float64)
        keys = [str(k) for k in data["keys"]]
        rows = data["configs"]
    good = np.isfinite(times)
    configs = [dict(zip(keys, map(int, row), strict=True)) for row in rows[good]]
    return configs, times[good]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bar"), [("GEMM_A100.npz", 0.95), ("GEMM_V100.npz", 0.90)])
def test_recorded_gpu_spaces_are_nearly_solved_in_fifty_measurements(name: str, bar: float) -> None:
    configs, times = recorded(name)
    reached = []
    for seed in range(10):
        proposer = Proposer(configs)
        seen: dict[int, float | None] = {}
        for number in range(50):
            index = proposer.propose(seen, np.random.default_rng([seed, number]))
            assert index is not None
            assert index not in seen
            seen[index] = float(times[index])
        reached.append(times.min() / min(t for t in seen.values() if t is not None))
    assert np.median(reached) >= bar


def test_the_guess_of_what_comes_next_is_right_while_first_ones_are_left_and_changes_nothing() -> (
    None
):
    configs = [{"A": a, "B": b} for a in (1, 2, 4, 8) for b in (1, 2, 4)]
    first = [configs[5], configs[2], configs[9]]
    sampler = EnumeratedSampler(configs, first, seed=3)
    study = optuna.create_study(sampler=sampler)
    trial = study.ask(sampler.space)
    assert trial.params == first[0]
    guess = list(islice(sampler.likely_next(study.get_trials()), 4))
    assert guess[:2] == first[1:]
    assert first[0] not in guess
    study.tell(trial, 1.0)
    for wanted in (*guess[:2], guess[2]):
        trial = study.ask(sampler.space)
        assert trial.params == wanted
        study.tell(trial, 2.0)
    assert len(list(sampler.likely_next(study.get_trials()))) == len(configs) - 4
