"""Winners of other problems are timed on each problem, but only those that may serve it."""

from dataclasses import replace

import pytest

from kernelforge.measure.bench import Bench
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.crossing import MOST, PHASE, cross, missing, promises
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.study import TuneResult
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.toolkit.small_family import needs_compiler, small_family

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

FAMILY = small_family(("none", "wrong"))


def measured(problem: Problem, workgroup: int, rows: int, ns: float, fault="none", **changes):
    params = {"WORKGROUP": workgroup, "ROWS": rows, "FAULT": fault}
    made = Measurement(
        "small", "f32", str(problem), FAMILY.variant(F32, params).name, Outcome.OK,
        median_ns=ns, samples_ns=(ns,) * 5,
    )  # fmt: skip
    return replace(made, **changes)


def result(problem: Problem, *finalists: Measurement, trials=()) -> TuneResult:
    best = min(finalists, key=lambda m: m.median_ns)
    return TuneResult(
        "small", "f32", problem, best, finalists[0], finalists, tuple(trials), 12, 1.0, "study"
    )


ONE, TWO = Problem(M=96, K=64), Problem(M=64, K=64)


def names(found) -> list[str]:
    return [name.rsplit("/", 1)[-1] for name in found]


def test_a_winner_is_wanted_where_it_was_not_timed_in_turns_and_no_trial_was_slow(llvmpipe) -> None:
    one = result(ONE, measured(ONE, 16, 1, 100.0), measured(ONE, 8, 1, 90.0))
    two = result(TWO, measured(TWO, 16, 1, 50.0), measured(TWO, 32, 1, 40.0))
    info = llvmpipe.info
    assert names(missing(one, [one, two], FAMILY, info)) == ["FAULT=none.ROWS1.WORKGROUP32"]
    assert names(missing(two, [one, two], FAMILY, info)) == ["FAULT=none.ROWS1.WORKGROUP8"]
    slow = replace(
        one, trials=(measured(ONE, 8, 1, 80.0), measured(ONE, 32, 1, 160.0))
    )  # fmt: skip
    assert missing(slow, [slow, two], FAMILY, info) == []
    near = replace(slow, trials=(measured(ONE, 8, 1, 80.0), measured(ONE, 32, 1, 84.0)))
    assert names(missing(near, [near, two], FAMILY, info)) == ["FAULT=none.ROWS1.WORKGROUP32"]
    elsewhere = replace(two, precision="f16", family="other")
    assert missing(one, [one, elsewhere], FAMILY, info) == []


def test_a_problem_tries_a_few_winners_those_of_most_problems_first(llvmpipe) -> None:
    won = [(8, 1), (16, 1), (32, 1), (8, 2), (16, 2), (16, 2)]
    others = [
        result(p := Problem(M=32 * i, K=64), measured(p, w, r, 10.0))
        for i, (w, r) in enumerate(won, 1)
    ]
    mine = result(ONE, measured(ONE, 64, 1, 10.0))
    found = missing(mine, [*others, mine], FAMILY, llvmpipe.info)
    assert len(found) == MOST < len(set(won))
    assert names(found)[0] == "FAULT=none.ROWS2.WORKGROUP16"


def test_who_came_off_worst_for_the_size_of_the_problem_promises_most() -> None:
    double = Problem(M=2 * ONE["M"], K=2 * ONE["K"])
    usual = result(ONE, measured(ONE, 16, 1, 100.0))
    fair, poor = (result(double, measured(double, 8, 1, ns)) for ns in (400.0, 8000.0))

    def promised(*results: TuneResult) -> list[float]:
        return promises(results, lambda _: FAMILY)

    assert promised(fair, usual) == pytest.approx([1.0, 1.0], rel=0.1)
    assert promised(poor, usual) == [pytest.approx(20.0, rel=0.1), 1.0]
    assert promised(poor) == [1.0]


def test_only_the_most_promising_is_crossed_where_time_is_short(llvmpipe, tmp_path) -> None:
    needs_compiler()
    one, two = result(ONE, measured(ONE, 16, 1, 1e4)), result(TWO, measured(TWO, 32, 1, 1e6))
    journal = Journal(tmp_path / "j.jsonl")
    order = []

    def bench_for(found: TuneResult) -> Bench:
        order.append(found.problem)
        return Bench(llvmpipe, FAMILY, F32, found.problem, effort=Effort(samples=3))

    found = cross([one, two], lambda _: FAMILY, llvmpipe.info, bench_for, journal, None)
    assert order == [TWO, ONE]
    assert [r.problem for r in found] == [ONE, TWO]


def test_crossed_winners_are_verified_timed_and_journalled(llvmpipe, tmp_path) -> None:
    needs_compiler()
    one = result(ONE, measured(ONE, 16, 1, 1e4))
    two = result(TWO, measured(TWO, 32, 1, 2e4))
    bad = result(Problem(M=32, K=64), measured(Problem(M=32, K=64), 8, 1, 5e3, "wrong"))
    journal = Journal(tmp_path / "j.jsonl")

    def bench_for(found: TuneResult) -> Bench:
        return Bench(llvmpipe, FAMILY, F32, found.problem, effort=Effort(samples=3))

    crossed = cross([one, two, bad], lambda name: FAMILY, llvmpipe.info, bench_for, journal, None)
    added = crossed[0].finalists[1:]
    assert {m.variant.rsplit("WORKGROUP", 1)[-1]: m.outcome for m in added} == {
        "32": Outcome.OK, "8": Outcome.WRONG_RESULT,
    }  # fmt: skip
    good = next(m for m in added if m.ok)
    assert good.spirv_sha256
    assert good.tolerance > 0
    # On the scale of the winner's own time, and never faster by mere luck.
    assert good.median_ns >= crossed[0].best.median_ns > 0
    assert not any(m.ok for m in added if "wrong" in m.variant)
    assert [m.phase for m in read_journal(tmp_path / "j.jsonl")].count(PHASE) >= 2
    assert crossed[2].finalists == bad.finalists  # a winner that is wrong there compares nothing


def test_without_time_the_results_stay_as_they_were(llvmpipe, tmp_path) -> None:
    one = result(ONE, measured(ONE, 16, 1, 1e4))
    two = result(TWO, measured(TWO, 32, 1, 2e4))

    def never(found: TuneResult) -> Bench:
        raise AssertionError("no bench is opened")

    journal = Journal(tmp_path / "j.jsonl")
    assert cross([one, two], lambda n: FAMILY, llvmpipe.info, never, journal, 0.0) == [one, two]
