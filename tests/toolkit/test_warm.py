"""Winners of other bundles as first candidates: which, in which order, and what the result says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge.errors import TuneError
from kernelforge.families import get_family
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.study import tune_problem, tune_problems
from kernelforge.tune.warm import Start, read_starts, starts_for, won_here
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler, small_family

ROOT = Path(__file__).parents[2]
QUICK = Effort(sample_ns=2e5, samples=3, longest_sample_ns=2e6)


def start(workgroup: int, rows: int, problem: Problem, fault: str = "none") -> Start:
    params = {"WORKGROUP": workgroup, "ROWS": rows, "FAULT": fault}
    return Start(Variant.of("small", "f32", params), problem, "elsewhere")


def test_the_nearest_problem_comes_first_and_each_configuration_once() -> None:
    task = TuneTask(small_family(), F32, Problem(M=64, K=64))
    far, near = Problem(M=4096, K=4096), Problem(M=64, K=128)
    starts = [start(8, 1, far), start(32, 2, near), start(8, 1, near), start(64, 1, far)]
    found = [(p["WORKGROUP"], p["ROWS"]) for p in starts_for(starts, task, GENERIC)]
    assert found == [(32, 2), (8, 1), (64, 1)]
    assert len(starts_for(starts, task, GENERIC, most=2)) == 2


def test_this_very_problem_in_another_precision_comes_before_a_far_one_in_the_own() -> None:
    task = TuneTask(small_family(), F32, Problem(M=64, K=64))
    near, far = Problem(M=64, K=128), Problem(M=64, K=4096)
    other = start(64, 1, task.problem)
    other = replace(other, variant=Variant.of("small", "f16", other.variant.values))
    starts = [start(8, 1, far), other, start(32, 2, near)]
    found = [p["WORKGROUP"] for p in starts_for(starts, task, GENERIC)]
    assert found == [32, 64, 8]


def test_only_the_winner_of_this_problem_on_this_device_counts_as_won_here() -> None:
    task = TuneTask(small_family(), F32, Problem(M=64, K=64))
    elsewhere, other = start(8, 1, task.problem), start(8, 2, Problem(M=64, K=128))
    mine = [
        replace(s, bundle=GENERIC.slug)
        for s in (other, start(32, 2, task.problem), start(64, 1, task.problem))
    ]
    found = won_here([elsewhere, *mine], task, GENERIC)
    assert found == {"WORKGROUP": 32, "ROWS": 2, "FAULT": "none"}
    assert won_here([elsewhere, mine[0]], task, GENERIC) is None
    alike = Start(Variant.of("other", "f32", {"ROWS": 1}), task.problem, GENERIC.slug)
    assert won_here([alike, *mine], task, GENERIC) == found  # families may share a problem


def test_what_the_space_does_not_know_any_more_and_other_families_are_left_out() -> None:
    task = TuneTask(small_family(), F32, Problem(M=64, K=64))
    other = Start(Variant.of("other", "f32", {"ROWS": 1}), task.problem, "elsewhere")
    starts = [other, start(8, 1, task.problem, fault="removed"), start(64, 2, task.problem)]
    assert [p["WORKGROUP"] for p in starts_for(starts, task, GENERIC)] == [64]


def test_a_winner_from_before_a_parameter_existed_takes_that_parameter_s_default() -> None:
    task = TuneTask(small_family(), F32, Problem(M=64, K=64))
    older = Start(Variant.of("small", "f32", {"WORKGROUP": 64, "ROWS": 2}), task.problem, "old")
    too_large = start(64, 4, task.problem)
    found = starts_for([older, too_large], task, GENERIC)
    assert found == [{"WORKGROUP": 64, "ROWS": 2, "FAULT": "none"}]


def test_a_bundle_gives_its_winners_and_what_is_none_is_a_named_error(tmp_path: Path) -> None:
    starts = read_starts([ROOT / "tuned" / "generic"])
    assert {s.bundle for s in starts} == {"generic"}
    gemv = get_family("gemv")
    task = TuneTask(gemv, gemv.precisions[0], gemv.default_problems[0])
    assert starts_for(starts, task, GENERIC)
    with pytest.raises(TuneError, match="--warm-start"):
        read_starts([tmp_path])


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_result_says_how_many_trials_were_warm_and_whether_one_won(
    llvmpipe: Device, tmp_path: Path
) -> None:
    needs_compiler()
    warm = [{"WORKGROUP": w, "ROWS": 2, "FAULT": "none"} for w in (32, 64)]
    journal = Journal(tmp_path / "journal.jsonl")
    result = tune_problem(
        llvmpipe, small_family(), F32, Problem(M=67, K=64), Budget(3), journal,
        tmp_path / "optuna.log", warm=warm, effort=QUICK,
    )  # fmt: skip
    names = [small_family().variant(F32, params).name for params in warm]
    assert [m.variant for m in result.trials[1:]] == names
    assert result.warm_trials == 2
    assert result.warm_won == (result.best.variant in names)


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_first_of_them_is_tried_however_little_time_there_is(
    llvmpipe: Device, tmp_path: Path
) -> None:
    needs_compiler()
    family, problem = small_family(), Problem(M=67, K=64)
    warm = [{"WORKGROUP": 32, "ROWS": 2, "FAULT": "none"}]
    result = tune_problem(
        llvmpipe, family, F32, problem, Budget(9, seconds=1e-6), Journal(tmp_path / "j.jsonl"),
        tmp_path / "optuna.log", warm=warm, effort=QUICK,
    )  # fmt: skip
    assert [m.variant for m in result.trials[1:]] == [family.variant(F32, warm[0]).name]


@pytest.mark.vulkan
@pytest.mark.glslang
def test_winners_of_this_run_are_tried_too_but_do_not_count_as_warm(
    llvmpipe: Device, tmp_path: Path
) -> None:
    needs_compiler()
    family = small_family()
    tasks = [TuneTask(family, F32, Problem(M=m, K=64)) for m in (128, 64)]
    results = tune_problems(
        llvmpipe, tasks, Budget(3), Journal(tmp_path / "journal.jsonl"), tmp_path / "optuna.log",
        starts=[start(64, 2, Problem(M=64, K=64))],
    )  # fmt: skip
    assert [r.warm_trials for r in results] == [1, 1]
    first = results[0].best.variant
    assert first in {m.variant for m in results[1].trials}
