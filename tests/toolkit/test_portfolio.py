"""The portfolio: what is in the file, which of it a problem gets, and what the result tells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelforge.cli.main import main
from kernelforge.errors import TuneError
from kernelforge.families import load_families
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune import portfolio, warm
from kernelforge.tune.budget import Budget
from kernelforge.tune.experience import experience_of
from kernelforge.tune.journal import Journal
from kernelforge.tune.objective import first_good
from kernelforge.tune.portfolio import (
    Known,
    cover,
    is_distant,
    members_for,
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
from kernelforge_runtime.bundle import read_manifest
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


def test_a_portfolio_is_distant_where_no_line_of_it_is_of_this_device() -> None:
    other, own = known("other", {(8, 1): 1.0}), known(GENERIC.slug, {(8, 1): 1.0})
    assert is_distant([other], GENERIC)
    assert not is_distant([other, own], GENERIC)


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


def line_of(**changes: object) -> str:
    """A file of one line that is right but for the changes."""
    line = {
        "device": "one", "family": "small", "precision": "f32", "problem": "M8.K8",
        "default": 0.5, "shares": {"small/f32/ROWS1": 1.0}, **changes,
    }  # fmt: skip
    return json.dumps({"format": "kernelforge.portfolio", "version": 1, "known": [line]})


def test_the_shipped_portfolio_is_what_the_shipped_bundles_give() -> None:
    """Else: `kernelforge portfolio` makes it anew."""
    bundles = sorted(path.parent for path in TUNED.glob("*/manifest.json"))
    assert list(shipped_portfolio()) == portfolio_of(bundles)


def test_a_right_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(line_of())
    assert len(read_portfolio(tmp_path / "x.json")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "[" * 100_000, '{"format": "other", "version": 1, "known": []}',
        line_of(default=math.nan), line_of(default="0.5"), line_of(more=1), line_of(device=[1]),
        line_of(shares={"small/f32/ROWS1": 2.0}), line_of(shares={"small/f32/ROWS1": -1.0}),
        line_of(shares={"small/f32/ROWS1": math.inf}), line_of(shares=["small/f32/ROWS1"]),
        line_of(shares={"small/f32/": 1.0}), line_of(problem="M0"), line_of(problem=5),
    ],
)  # fmt: skip
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
    known, families = shipped_portfolio(), load_families()
    lines = known[::4]
    assert {line.family for line in lines} <= set(families)
    served = 0
    for number, line in enumerate(lines):
        family = families[line.family]
        task = TuneTask(family, family.precision(line.precision), line.problem)
        members = members_for(known, task, GENERIC)
        assert len(members) <= 8
        served += bool(members)
        if number % 3:  # to enumerate a space takes long
            continue
        valid = family.valid(line.precision, GENERIC, line.problem)
        assert all(member in valid or not family.matters(task.precision, member)
                   for member in members)  # fmt: skip
    assert served > len(lines) // 2  # the generic device lacks what some of them need


def test_the_command_makes_the_file_from_bundles_and_says_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made.json"
    done = kernelforge("portfolio", TUNED / "llvmpipe", "--out", out, "--json", **NO_VULKAN)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["devices"] == ["llvmpipe"]
    assert said["problems"] == len(read_portfolio(out))
    done = kernelforge("portfolio", TUNED / "generic", "--out", out, **NO_VULKAN)
    assert done.returncode == 1
    assert "no winner in" in done.stderr
    for place, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "x", "cannot be written")):
        args = ["portfolio", str(TUNED / "llvmpipe"), "--out", str(place)]
        assert main(args) != 0
        (line,) = capsys.readouterr().err.splitlines()
        assert why in line
        assert "name a" in line


def test_what_a_bundle_has_without_a_time_is_left_out_and_a_name_of_no_variant_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = read_manifest(TUNED / "llvmpipe")
    first, second = manifest.entries[:2]
    for change, said in (
        ({"median_ns": 0}, None),
        ({"variant": f"{first.family}/{first.precision}/"}, "is no parameter"),
    ):
        changed = replace(manifest, entries=(replace(first, **change), second))
        for module in (portfolio, warm):
            monkeypatch.setattr(module, "read_manifest", lambda path, found=changed: found)
        if said is None:
            assert [line.problem for line in portfolio_of([TUNED])] == [second.problem]
            continue
        for what, read in (("portfolio of", portfolio_of), ("--warm-start", warm.read_starts)):
            with pytest.raises(TuneError, match=f"{what} .*tuned: .*{said}"):
                read([TUNED])


def test_a_software_device_on_two_processors_is_two_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = read_manifest(TUNED / "llvmpipe")
    best = min((e for e in here.entries if not e.beaten), key=lambda e: e.median_ns)
    there = replace(
        here,
        device=replace(here.device, processor="another processor"),
        entries=(replace(best, median_ns=best.median_ns // 2),),
    )
    alone = replace(here, entries=(best,))
    found = {"here": alone, "there": there}
    monkeypatch.setattr(portfolio, "read_manifest", lambda path: found[path.name])
    lines = portfolio_of([Path("here"), Path("there")])
    assert [line.device for line in lines] == ["llvmpipe"] * 2
    assert [line.shares for line in lines] == [{best.variant: 1.0}] * 2


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
    lines = [known(llvmpipe.info.slug, {(32, 2): 1.0, (64, 2): 0.9})]
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


def valley(name: str, at: int, words: str = "ab", wide: int = 30) -> RecordedSpace:
    """A recorded space of 240 that is fastest where x is `at`."""
    configs: list[dict[str, Any]] = [
        {"x": x, "y": y, "z": z} for x in range(wide) for y in (1, 2, 4, 8) for z in words
    ]
    times = [(1.0 + abs(c["x"] - at) + c["y"] / 8 + (c["z"] == "a"),) for c in configs]
    return RecordedSpace(name, tuple(configs), tuple(times), ("correct",) * len(configs))


def test_a_recorded_space_gets_members_from_others_of_its_parameters_without_being_asked() -> None:
    space, near, other = valley("space", 12), valley("near", 14), valley("other", 3)
    found = experience_of(space, [near, other])
    assert found is not None
    members = [space.configs[i] for i in found.members]
    assert len(members) == 8
    best = [near.configs[int(near.times_ms.argmin())], other.configs[int(other.times_ms.argmin())]]
    assert all(config in members[:2] for config in best)


def test_a_replay_with_a_good_portfolio_is_done_sooner_and_with_a_bad_one_little_later() -> None:
    space = valley("space", 12)
    good, bad = (experience_of(space, [valley("o", at)]) for at in (12, 29))
    cold, helped, misled = (
        np.mean([replay(space, "tpe", 40, seed, known) for seed in range(8)], axis=0)
        for known in (None, good, bad)
    )
    assert helped[7] < 1.3 * space.optimum_ms < cold[7]
    assert misled[-1] <= cold[-1] * 1.05
    assert misled[24] <= cold[19] * 1.1


def test_the_replay_command_sets_both_ways_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("one", "two", "three")]
    for path, space in zip(
        paths,
        (valley("one", 5, wide=9), valley("two", 4, wide=9), valley("three", 3, "abc", wide=4)),
        strict=True,
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
    done = kernelforge(
        "tune", "--replay", paths[0], "--warm-start", TUNED / "llvmpipe", **NO_VULKAN
    )
    assert done.returncode == 2
    assert "--warm-start is for tuning a device" in done.stderr
