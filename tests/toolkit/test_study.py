"""Tuning end to end on a small space: what is found, what is kept, what survives a kill."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kernelforge.errors import TuneError
from kernelforge.measure.bench import Bench
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.finals import choose
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.problems import TuneTask
from kernelforge.tune.progress import Progress
from kernelforge.tune.storage import open_storage
from kernelforge.tune.study import TuneResult, tune_problem, tune_problems
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler, small_family

ROOT = Path(__file__).parents[2]
PROBLEM = Problem(M=67, K=64)
QUICK = Effort(sample_ns=2e5, samples=4, longest_sample_ns=2e6)

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.fixture
def device(llvmpipe: Device) -> Device:
    needs_compiler()
    return llvmpipe


def tune(device: Device, folder: Path, trials: int = 20, **changes: Any) -> TuneResult:
    family = changes.pop("family", small_family())
    return tune_problem(
        device, family, F32, changes.pop("problem", PROBLEM), Budget(trials),
        Journal(folder / "journal.jsonl"), folder / "optuna.log", effort=QUICK, **changes,
    )  # fmt: skip


def searched(folder: Path) -> list[Measurement]:
    return [m for m in read_journal(folder / "journal.jsonl") if m.phase == "trial"]


def test_a_small_space_is_covered_and_the_winner_is_measured_again(
    device: Device, tmp_path: Path
) -> None:
    said: list[Progress] = []
    result = tune(device, tmp_path, on_progress=said.append)
    assert result.space_size == 11
    assert len(result.trials) == len(said) == 11
    assert len({m.variant for m in result.trials}) == 11
    assert result.trials[0].variant == "small/f32/FAULT=none.ROWS1.WORKGROUP16"
    assert result.default.variant == result.trials[0].variant
    assert result.best.phase == "final"
    assert result.best.ok
    assert result.best.median_ns <= result.default.median_ns
    assert len(result.finalists) <= 4
    kept = [m.variant for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "final"]
    assert kept == [m.variant for m in result.finalists]
    assert device.info.slug in result.study


def test_a_progress_line_names_problem_trial_variant_time_and_best(
    device: Device, tmp_path: Path
) -> None:
    said: list[Progress] = []
    tune(device, tmp_path, trials=2, on_progress=said.append)
    line = said[0].line()
    for part in ("small f32 M67.K64", "trial   1/2", "WORKGROUP16", "µs", "GB/s", "best"):
        assert part in line


def test_wrong_and_broken_variants_are_recorded_and_never_win(
    device: Device, tmp_path: Path
) -> None:
    family = small_family(("none", "wrong", "overrun", "hole", "broken"))
    result = tune(device, tmp_path, trials=30, family=family)
    outcomes = {m.outcome for m in result.trials}
    assert {Outcome.OK, Outcome.WRONG_RESULT, Outcome.COMPILE_FAILED} <= outcomes
    assert all(m.ok == ("FAULT=none" in m.variant) for m in result.trials)
    assert "FAULT=none" in result.best.variant
    assert all(m.reason for m in result.trials if not m.ok)


def test_a_family_whose_oracle_disagrees_has_no_winner(device: Device, tmp_path: Path) -> None:
    family = small_family(("wrong",))
    with pytest.raises(TuneError, match=r"no variant .* 11 WRONG_RESULT"):
        tune(device, tmp_path, family=family)
    assert all(m.outcome is Outcome.WRONG_RESULT for m in searched(tmp_path))


def test_a_fast_variant_that_is_wrong_at_a_corner_is_dropped_in_the_finals(
    device: Device, tmp_path: Path
) -> None:
    """ "overrun" writes past the end only where rows are left over, which 64 rows never are."""
    family = small_family(("none", "overrun"), corner_problems=(Problem(M=67, K=8),))
    problem = Problem(M=128, K=64)
    result = tune(device, tmp_path, trials=22, family=family, problem=problem)
    found = {m.variant: m for m in result.trials}
    assert found["small/f32/FAULT=overrun.ROWS1.WORKGROUP16"].ok
    assert "FAULT=none" in result.best.variant
    dropped = [m for m in result.finalists if not m.ok]
    assert all("at M67.K8" in m.reason for m in dropped)


def test_tuning_again_measures_nothing_twice(device: Device, tmp_path: Path) -> None:
    first = tune(device, tmp_path, trials=4)
    again = tune(device, tmp_path, trials=4)
    assert again.trials == first.trials
    more = tune(device, tmp_path, trials=6)
    assert more.trials[:4] == first.trials
    assert len(searched(tmp_path)) == len(more.trials) == 6


def test_an_interrupted_trial_is_done_again(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = Bench.measure, []

    def interrupted(self: Bench, *args: Any, **kwargs: Any) -> Measurement:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Bench, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(device, tmp_path)
    assert len(searched(tmp_path)) == 3
    result = tune(device, tmp_path)
    assert len(result.trials) == len(searched(tmp_path)) == 11


CHILD = """
import sys
from pathlib import Path
from kernelforge.measure.timed_problem import Effort
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.study import tune_problem
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.vk import open_device
from tests.toolkit.small_family import small_family
folder = Path(sys.argv[1])
with open_device("llvmpipe") as device:
    tune_problem(device, small_family(), F32, Problem(M=67, K=64), Budget(20),
                 Journal(folder / "journal.jsonl"), folder / "optuna.log",
                 effort=Effort(sample_ns=2e5, samples=4, longest_sample_ns=2e6),
                 on_progress=lambda p: print(p.last.variant, flush=True))
"""


def test_a_killed_run_loses_nothing_that_was_finished(device: Device, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "runtime")])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    finished = [child.stdout.readline().strip() for _ in range(4)]
    time.sleep(0.03)
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    child.wait()
    assert all(finished), "the child ended by itself"
    kept = searched(tmp_path)
    assert [m.variant for m in kept][:4] == finished
    result = tune(device, tmp_path)
    assert list(result.trials[: len(finished)]) == kept[: len(finished)]
    assert len({m.variant for m in result.trials}) == len(result.trials) == 11


def test_a_storage_with_a_torn_last_line_opens_and_goes_on(device: Device, tmp_path: Path) -> None:
    tune(device, tmp_path, trials=3)
    path = tmp_path / "optuna.log"
    path.write_bytes(path.read_bytes()[:-7])
    result = tune(device, tmp_path, trials=6)
    assert len({m.variant for m in result.trials}) >= 5


def test_a_storage_that_cannot_be_opened_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="cannot open tuning storage"):
        open_storage("nosuchdb://nowhere/none")
    (tmp_path / "file").write_text("")
    with pytest.raises(TuneError, match="cannot open tuning storage"):
        open_storage(tmp_path / "file" / "optuna.log")


def test_a_database_url_works_as_storage(device: Device, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    journal = Journal(tmp_path / "journal.jsonl")
    for trials in (2, 4):
        result = tune_problem(
            device, small_family(), F32, PROBLEM, Budget(trials), journal, url, effort=QUICK
        )
    assert len(result.trials) == 4


def test_several_problems_share_a_budget_and_one_failure_does_not_stop_them(
    device: Device, tmp_path: Path
) -> None:
    good, bad = small_family(), small_family(("wrong",), name="bad")
    tasks = [
        TuneTask(good, F32, Problem(M=16, K=16)),
        TuneTask(bad, F32, Problem(M=64, K=64)),
        TuneTask(good, F32, Problem(M=64, K=64), calls=9),
    ]
    results = tune_problems(
        device, tasks, Budget(3, 20.0), Journal(tmp_path / "journal.jsonl"), tmp_path / "optuna.log"
    )
    assert [r.problem for r in results] == [Problem(M=64, K=64), Problem(M=16, K=16)]
    warm = results[0].best.variant
    assert warm in {m.variant for m in results[1].trials[:2]}


def test_a_run_out_of_time_still_measures_the_default(device: Device, tmp_path: Path) -> None:
    result = tune_problem(
        device, small_family(), F32, PROBLEM, Budget(20, 0.001), Journal(tmp_path / "j.jsonl"),
        tmp_path / "optuna.log", effort=QUICK,
    )  # fmt: skip
    assert result.best.variant == result.default.variant


def final(name: str, samples: tuple[float, ...], outcome: Outcome = Outcome.OK) -> Measurement:
    middle = sorted(samples)[len(samples) // 2] if outcome is Outcome.OK else math.nan
    return Measurement(
        "small", "f32", "M8.K8", name, outcome, median_ns=middle, samples_ns=samples, phase="final"
    )


def test_the_default_stays_where_nothing_is_faster_beyond_noise() -> None:
    default = final("default", (10.0, 10.4, 9.8, 10.1, 10.2))
    lucky = final("lucky", (9.9, 10.5, 9.7, 10.3, 10.1))
    chosen = choose([default, lucky])
    assert chosen is not None
    assert chosen.variant == "default"


def test_a_clearly_faster_finalist_wins() -> None:
    default = final("default", (10.0, 10.4, 9.8, 10.1, 10.2))
    fast = final("fast", (8.0, 8.1, 7.9, 8.2, 8.0))
    chosen = choose([default, fast])
    assert chosen is not None
    assert chosen.variant == "fast"


def test_a_wrong_finalist_never_wins_and_a_wrong_default_is_replaced() -> None:
    default = final("default", (), Outcome.WRONG_RESULT)
    fine = final("fine", (12.0, 12.0, 12.0))
    chosen = choose([default, fine])
    assert chosen is not None
    assert chosen.variant == "fine"
    assert choose([default, final("other", (), Outcome.WRONG_RESULT)]) is None


def test_a_problem_the_family_refuses_is_a_named_error(device: Device, tmp_path: Path) -> None:
    with pytest.raises(TuneError, match="M, K"):
        tune(device, tmp_path, problem=Problem(M=3))
