"""Budgets and the problems they are shared among."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from kernelforge.errors import TuneError
from kernelforge.families import load_families
from kernelforge.tune.budget import Budget, Deadline, share
from kernelforge.tune.problems import TuneTask, collect_tasks, near, with_rivals
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from tests.toolkit.small_family import small_family


def test_a_profile_gives_trials_and_seconds() -> None:
    assert Budget.of("quick") == Budget(40, 300.0, "quick")
    assert Budget.of("full").trials > Budget.of("quick").trials


def test_asking_for_trials_lifts_the_limit_of_time() -> None:
    assert Budget.of("quick", trials=500).seconds is None
    assert Budget.of("quick", seconds=10).trials == 40
    assert Budget.of("quick", trials=5, seconds=10) == Budget(5, 10, "quick")


@pytest.mark.parametrize(
    ("trials", "seconds"),
    [(0, None), (-1, None), (5, 0.0), (5, -3.0), (5, math.nan), (5, math.inf)],
)
def test_a_budget_of_nothing_is_refused(trials: int, seconds: float | None) -> None:
    with pytest.raises(TuneError, match="use"):
        Budget(trials, seconds)


def test_an_unknown_profile_is_refused_by_name() -> None:
    with pytest.raises(TuneError, match="quick, full"):
        Budget.of("slow")


def test_a_deadline_counts_down_and_without_a_limit_never_ends() -> None:
    now = [0.0]
    deadline = Deadline(10.0, clock=lambda: now[0])
    now[0] = 4.0
    assert deadline.left_s == 6.0
    now[0] = 11.0
    assert deadline.reached
    assert not Deadline(None).reached


def test_heavier_problems_get_more_time_and_all_of_it_is_given_out() -> None:
    left, given = 100.0, []
    weights = [8.0, 1.0, 1.0]
    for i in range(3):
        part = share(left, weights[i:])
        assert part is not None
        given.append(part)
        left -= part
    assert sum(given) == pytest.approx(100.0)
    assert given[0] > 2 * given[1]
    assert min(given) > 5.0


def test_tasks_are_added_up_heaviest_first_and_near_ones_are_one() -> None:
    family = small_family()
    found = [
        ("small", "f32", Problem(M=64, K=64), 2),
        ("small", "f32", Problem(M=1024, K=64), 1),
        ("small", "f32", Problem(M=64, K=64), 3),
        ("small", "f32", Problem(M=1000, K=64), 4),
    ]
    tasks = collect_tasks(found, {"small": family})
    assert [(t.problem, t.calls) for t in tasks] == [
        (Problem(M=1000, K=64), 5),
        (Problem(M=64, K=64), 5),
    ]
    assert [t.stands_for for t in tasks] == [(Problem(M=1024, K=64),), ()]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ({"M": 768, "K": 768}, {"M": 832, "K": 704}, True),  # 8 % and 9 %
        ({"M": 768, "K": 768}, {"M": 896, "K": 768}, False),  # 17 %
        ({"M": 768, "K": 768, "X": 16}, {"M": 768, "K": 768, "X": 32}, False),
        ({"M": 768, "K": 3072}, {"M": 3072, "K": 768}, False),
        ({"M": 768, "K": 768, "T": 8}, {"M": 768, "K": 768, "T": 9}, False),
        ({"M": 768, "K": 768, "T": 255}, {"M": 768, "K": 768, "T": 256}, True),
    ],
)
def test_problems_share_a_study_where_every_size_is_near(one, other, shared) -> None:
    family = load_families()["gemv"]
    tasks = [
        TuneTask(family, family.precision("f16"), family.completed(Problem(**dims)))
        for dims in (one, other)
    ]
    assert near(*tasks) == near(*tasks[::-1]) == shared
    assert not near(tasks[0], replace(tasks[0], precision=family.precision("q8")))


def test_no_study_stands_for_another_head_size_though_the_sizes_are_near() -> None:
    """A kernel is compiled for its head size: 10 % more is another program."""
    family = load_families()["wkv7"]
    one, other = (
        TuneTask(family, family.precision("f32"), Problem(T=256, H=12, N=n, B=1)) for n in (60, 64)
    )
    assert not near(one, other)
    assert near(one, replace(one, problem=Problem(T=250, H=13, N=60, B=1)))


def test_an_unknown_family_or_precision_is_a_named_error() -> None:
    family = small_family()
    with pytest.raises(TuneError, match="not known"):
        collect_tasks([("other", "f32", Problem(M=1, K=1), 1)], {"small": family})
    with pytest.raises(TuneError, match="it has f32"):
        collect_tasks([("small", "f16", Problem(M=1, K=1), 1)], {"small": family})


def test_a_call_is_tuned_for_every_family_that_may_do_it_here() -> None:
    families = load_families()
    dims = {"M": 96, "K": 64, "S": 1, "T": 64, "Y": 32}
    halves, floats = Problem(**dims, X=16), Problem(**dims, X=32)
    found = [("gemm", "f16", halves, 3), ("gemm", "f16", floats, 1), ("gemm", "f32", halves, 1)]
    assert with_rivals(found, families, GENERIC) == found
    device = replace(
        GENERIC,
        features=GENERIC.features | {"cooperative_matrix", "float16", "subgroup_size_control"},
        cooperative_shapes=((16, 16, 16, "f16", "f16", "f32", "f32"),),
        subgroup_size=32,
    )
    rivals = [("gemm_coop", "f16", halves, 3), ("gemm_half", "f16", halves, 3)]
    assert with_rivals(found, families, device) == [*found, *rivals]


def test_products_that_round_their_inputs_are_tuned_only_where_that_is_asked_for() -> None:
    families = load_families()
    problem = Problem(M=96, K=64, S=1, T=1, X=32, Y=32)
    found = [("gemv", "q8", problem, 3), ("gemv", "nf4", problem, 1)]
    assert with_rivals(found, families, GENERIC) == found
    rounding = with_rivals(found, families, GENERIC, rounding=True)
    assert rounding == [*found, ("gemv_dot", "q8", problem, 3)]


def test_a_model_s_long_recurrences_are_tuned_in_both_forms_at_several_lengths() -> None:
    families = load_families()
    found = [("wkv7", "f32", Problem(T=t, H=2, N=64, B=1), 3) for t in (1, 256)]
    asked = with_rivals(found, families, GENERIC)
    assert asked[:2] == found
    assert {(name, problem["T"]) for name, _, problem, _ in asked} == {
        ("wkv7", 1), ("wkv7", 256), ("wkv7_chunk", 256), ("wkv7", 64), ("wkv7_chunk", 64),
        ("wkv7", 16), ("wkv7_chunk", 16),
    }  # fmt: skip
    tasks = collect_tasks(asked, families)
    assert len(tasks) == len(asked)
