"""The portfolio: what is in the file, which of it a problem gets, and what the result tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernelforge.errors import TuneError
from kernelforge.families import load_families
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import first_good
from kernelforge.tune.portfolio import (
    Known,
    cover,
    members_for,
    members_of_space,
    portfolio_of,
    read_portfolio,
    shipped_portfolio,
    write_portfolio,
)
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.recorded import RecordedSpace, write_t4
from kernelforge.tune.replay import replay
from kernelforge.tune.study import tune_problems
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import Device
from tests.toolkit.cli_process import NO_VULKAN, kernelforge
from tests.toolkit.small_family import needs_compiler, small_family

TUNED = Path(__file__).parents[2] / "tuned"
TASK = TuneTask(small_family(), F32, Problem(M=64, K=64))


def known(
    device: str, shares: dict[tuple[int, int], float], m: int = 64, fault: str = "none"
) -> Known:
    names = {f"small/f32/FAULT={fault}.ROWS{r}.WORKGROUP{w}": s for (w, r), s in shares.items()}
    return Known(device, "small", "f32", Problem(M=m, K=64), 0.5, names)


def test_the_best_set_is_chosen_not_the_best_ones() -> None:
    shares = np.array([[1.0, 0.98, 0.2], [0.9, 0.92, 0.3], [0.1, 0.1, 1.0]])
    codes = np.arange(3)[:, None]
    chosen = cover(shares, np.zeros(3), np.ones(3), codes, most=2)
    assert chosen == [0, 2]


def test_what_counts_more_is_covered_first() -> None:
    shares = np.array([[1.0, 0.2], [0.2, 1.0]])
    for weights, first in (((1, 3), 1), ((3, 1), 0)):
        chosen = cover(shares, np.zeros(2), np.array(weights, float), np.eye(2, dtype=int), 2)
        assert chosen[0] == first


def test_what_covers_nothing_new_is_fast_and_unlike_the_chosen() -> None:
    shares = np.array([[1.0, 0.99, 0.9, 0.3]])
    codes = np.array([[0, 0], [0, 1], [1, 1], [1, 1]])
    assert cover(shares, np.zeros(1), np.ones(1), codes, 4) == [0, 2, 1, 3]


def test_a_problem_gets_what_two_devices_like_and_nothing_that_it_or_the_space_refuses() -> None:
    lines = [
        known("one", {(32, 2): 1.0, (8, 1): 0.9, (64, 4): 1.0}),  # 256 rows: refused
        known("two", {(8, 1): 1.0, (32, 2): 0.3}),
        known("three", {(16, 4): 1.0}, fault="removed"),
        Known("four", "other", "f32", TASK.problem, 0.5, {"other/f32/ROWS1": 1.0}),
    ]
    found = [(p["WORKGROUP"], p["ROWS"]) for p in members_for(lines, TASK, GENERIC)]
    assert found == [(8, 1), (32, 2)]
    assert len(members_for(lines, TASK, GENERIC, most=1)) == 1
    assert members_for(lines[3:], TASK, GENERIC) == []


def test_near_problems_count_more_than_far_ones() -> None:
    lines = [known("one", {(32, 2): 1.0}, m=4096), known("one", {(8, 1): 1.0}, m=128)]
    assert members_for(lines, TASK, GENERIC)[0]["WORKGROUP"] == 8


def test_a_file_comes_back_as_it_was_and_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    lines = portfolio_of([TUNED / "llvmpipe", TUNED / "generic"])
    assert {line.device for line in lines} == {"llvmpipe"}
    for name in ("one", "two"):
        write_portfolio(lines, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_portfolio(tmp_path / "one") == lines
    assert all(0 <= line.default <= 1 and 1.0 in line.shares.values() for line in lines)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "version": 1, "known": []}'])
def test_another_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(TuneError, match=r"portfolio .*x\.json: not a file of"):
        read_portfolio(path)
    with pytest.raises(TuneError, match="No such file"):
        read_portfolio(tmp_path / "none.json")
    with pytest.raises(TuneError, match="portfolio of"):
        portfolio_of([tmp_path])


def test_the_shipped_portfolio_has_something_for_the_families_it_names() -> None:
    lines, families = shipped_portfolio(), load_families()
    assert {line.family for line in lines} <= set(families)
    served = 0
    for line in lines:
        family = families[line.family]
        task = TuneTask(family, family.precision(line.precision), line.problem)
        members = members_for(lines, task, GENERIC)
        assert len(members) <= 8
        valid = family.valid(line.precision, GENERIC, line.problem)
        assert all(member in valid or not family.matters(task.precision, member)
                   for member in members)  # fmt: skip
        served += bool(members)
    assert served > len(lines) // 2  # the generic device lacks what some of them need


def test_the_command_makes_the_file_from_bundles_and_says_what_is_in_it(tmp_path: Path) -> None:
    out = tmp_path / "made.json"
    done = kernelforge("portfolio", TUNED / "llvmpipe", "--out", out, "--json", **NO_VULKAN)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["devices"] == ["llvmpipe"]
    assert said["problems"] == len(read_portfolio(out))
    done = kernelforge("portfolio", TUNED / "generic", "--out", out, **NO_VULKAN)
    assert done.returncode == 1
    assert "no winner in" in done.stderr


def measured(name: str, ns: float, outcome: Outcome = Outcome.OK) -> Measurement:
    return Measurement("small", "f32", "M8.K8", name, outcome, median_ns=ns)


def test_the_first_good_trial_is_the_first_with_95_percent_of_the_winner_s_speed() -> None:
    found = [
        measured("slow", 20.0),
        measured("wrong", 1.0, Outcome.WRONG_RESULT),
        measured("near", 10.4),
        measured("won", 10.0),
    ]
    assert first_good(found, "won") == 3
    assert first_good(found, "near") == 3
    assert first_good(found, "slow") == 1
    assert first_good(found, "wrong") == 0


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_result_says_what_the_portfolio_contributed(llvmpipe: Device, tmp_path: Path) -> None:
    needs_compiler()
    lines = [known("one", {(32, 2): 1.0, (64, 2): 0.9})]
    for name, given, count in (("with", lines, 2), ("without", [], 0)):
        result, = tune_problems(
            llvmpipe, [TASK], Budget(4), Journal(tmp_path / name), tmp_path / f"{name}.log",
            known=given,
        )  # fmt: skip
        assert result.portfolio_trials == count
        assert result.portfolio_won == (
            result.best.variant in lines[0].shares and bool(given)
            and result.best.variant != result.default.variant
        )  # fmt: skip
        assert 1 <= result.good_trial <= 4


def valley(name: str, at: int, words: str = "ab") -> RecordedSpace:
    """A recorded space of 240 that is fastest where x is `at`."""
    configs = [{"x": x, "y": y, "z": z} for x in range(30) for y in (1, 2, 4, 8) for z in words]
    times = [(1.0 + abs(c["x"] - at) + c["y"] / 8 + (c["z"] == "a"),) for c in configs]
    return RecordedSpace(name, tuple(configs), tuple(times), ("correct",) * len(configs))


def test_a_recorded_space_gets_members_from_others_of_its_parameters_without_being_asked() -> None:
    space, near, other = valley("space", 12), valley("near", 14), valley("other", 3)
    members = [space.configs[i] for i in members_of_space(space, [near, other])]
    assert len(members) == 8
    best = [near.configs[int(near.times_ms.argmin())], other.configs[int(other.times_ms.argmin())]]
    assert all(config in members[:2] for config in best)
    reversed_times = RecordedSpace("space", space.configs, space.runtimes[::-1], space.reasons)
    assert [space.configs[i] for i in members_of_space(reversed_times, [near, other])] == members
    strange = RecordedSpace("strange", ({"w": 1},), ((1.0,),), ("correct",))
    assert members_of_space(space, [strange]) == []


def test_a_replay_with_good_members_is_done_sooner_and_with_bad_ones_little_later() -> None:
    space = valley("space", 12)
    good, bad = (members_of_space(space, [valley("o", at)]) for at in (12, 29))
    cold, helped, misled = (
        np.mean([replay(space, "tpe", 60, seed, seeds) for seed in range(12)], axis=0)
        for seeds in ([], good, bad)
    )
    assert helped[1] == space.optimum_ms < cold[1]
    assert misled[-1] <= cold[-1] * 1.05
    assert misled[24] <= cold[19] * 1.1


def test_the_replay_command_sets_both_ways_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("one", "two", "three")]
    for path, space in zip(
        paths, (valley("one", 12), valley("two", 13), valley("three", 3, "abc")), strict=True
    ):
        write_t4(space, path)
    strange = json.loads(paths[2].read_text().replace('"x"', '"w"'))
    paths[2].write_text(json.dumps(strange))
    done = kernelforge(
        "tune", "--replay", *paths, "--portfolio", "--strategy", "random", "--seeds", "2",
        "--json", **NO_VULKAN,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["replay"]
    assert [(row["space"], row["strategy"]) for row in rows] == [
        ("one", "random"), ("one", "random + portfolio"),
        ("two", "random"), ("two", "random + portfolio"), ("three", "random"),
    ]  # fmt: skip
    assert rows[1]["share_at"]["8"] >= rows[0]["share_at"]["8"]
    assert "three: no other space has its parameters" in done.stderr
