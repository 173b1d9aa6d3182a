"""Sharing modules: as few as possible, no problem slower than the slack allows."""

import itertools
import random

import pytest

from kernelforge.pack import choose
from kernelforge.pack.cover import greedy_cover, loss, smallest_cover
from kernelforge.pack.winners import sharing
from kernelforge_runtime.abi.module import ShaderModule
from tests.runtime.bundle_files import SIGNATURE, with_constant
from tests.toolkit.test_pack import candidate

SLACK = 0.03


def drawn(seed: int, problems: int, names: int) -> list[dict[str, float]]:
    """Problems that a few of the variants serve each, one of them best."""
    rng = random.Random(seed)
    rows = []
    for _ in range(problems):
        able = rng.sample("abcdefghijklmnop"[:names], rng.randint(1, min(4, names)))
        ratios = [1.0, *(1 + rng.random() * SLACK for _ in able[1:])]
        rows.append(dict(zip(able, ratios, strict=True)))
    return rows


def by_brute_force(rows: list[dict[str, float]]) -> tuple[int, float]:
    """Size and loss of the best cover, every subset tried."""
    names = sorted({name for row in rows for name in row})
    for size in range(1, len(names) + 1):
        able = [
            loss(rows, kept)
            for kept in itertools.combinations(names, size)
            if all(any(name in row for name in kept) for row in rows)
        ]
        if able:
            return size, min(able)
    raise AssertionError("no cover")


@pytest.mark.parametrize("seed", range(60))
def test_a_cover_is_as_small_and_as_fast_as_the_best_of_all_subsets(seed) -> None:
    rows = drawn(seed, problems=3 + seed % 8, names=3 + seed % 7)
    kept = smallest_cover(rows)
    assert all(any(name in row for name in kept) for row in rows)
    size, least = by_brute_force(rows)
    assert len(kept) == size
    assert loss(rows, kept) == pytest.approx(least)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert smallest_cover(shuffled) == kept


def test_it_finds_what_greed_does_not() -> None:
    rows: list[dict[str, float]] = [
        {"big": 1.0, "left": 1.0},
        {"big": 1.0, "left": 1.0},
        {"big": 1.0, "right": 1.0},
        {"big": 1.0, "right": 1.0},
        {"left": 1.0},
        {"right": 1.0},
    ]
    assert len(greedy_cover(rows)) == 3
    assert smallest_cover(rows) == ["left", "right"]


def test_a_search_that_is_cut_off_still_covers_no_worse_than_greed() -> None:
    rows = drawn(1, problems=60, names=16)
    kept = smallest_cover(rows, most_steps=5)
    assert all(any(name in row for name in kept) for row in rows)
    assert len(kept) <= len(greedy_cover(rows))


def test_a_problem_that_nothing_serves_has_no_cover() -> None:
    with pytest.raises(ValueError, match="nothing serves"):
        smallest_cover([{"a": 1.0}, {}])


@pytest.mark.parametrize("seed", range(40))
def test_no_problem_of_a_bundle_loses_more_than_the_slack(seed) -> None:
    rng = random.Random(seed)
    candidates = [
        candidate(size, rng.uniform(1000, 1080), rows)
        for size in range(1, 3 + seed % 7)
        for rows in rng.sample(range(1, 9), 5)
    ]
    chosen = choose(candidates, SLACK)
    best = {
        n: min(c.median_ns for c in candidates if c.problem["N"] == n)
        for n in {c.problem["N"] for c in candidates}
    }
    assert sorted(best) == [c.problem["N"] for c in chosen]
    assert all(c.median_ns <= best[c.problem["N"]] * (1 + SLACK) for c in chosen)
    kept = {c.module.name for c in chosen}
    for c in candidates:  # of what is kept, each takes the fastest
        if c.module.name in kept:
            own = next(w for w in chosen if w.problem == c.problem)
            assert own.median_ns <= c.median_ns
    told = sharing(candidates, chosen)
    assert told.after == len(kept) <= told.before
    assert told.problems == len(best)
    assert told.worst_loss == pytest.approx(
        max(c.median_ns / best[c.problem["N"]] - 1 for c in chosen)
    )


def test_what_sharing_saves_is_said_in_one_line() -> None:
    candidates = [
        candidate(64, 1000.0, 1), candidate(64, 1020.0, 2),
        candidate(128, 1010.0, 1), candidate(128, 1000.0, 3), candidate(128, 1015.0, 2),
    ]  # fmt: skip
    chosen = choose(candidates, SLACK)
    assert {c.module.name for c in chosen} == {"saxpy/f32/ROWS1"}
    assert sharing(candidates, chosen).line() == (
        "1 modules serve 2 problems; 2 would be best; saxpy f32 N128 loses most, 1.0 %"
    )
    alone = choose(candidates[:1], SLACK)
    assert sharing(candidates[:1], alone).line().endswith("1 would be best, and none loses time")


def test_families_do_not_share_modules() -> None:
    other = ShaderModule("other/f32/ROWS1", with_constant(1), SIGNATURE)
    candidates = [candidate(64), candidate(64, family="other", module=other)]
    assert len(choose(candidates, SLACK)) == 2
