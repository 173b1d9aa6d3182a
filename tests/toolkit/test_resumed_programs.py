"""A program that an earlier session measured is not measured again under another name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.programs import SAME, original
from kernelforge.space import Choice, Space
from kernelforge.tune.budget import Budget
from kernelforge.tune.journal import Journal
from kernelforge.tune.sampler import EnumeratedSampler
from kernelforge.tune.search import Search
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from tests.toolkit.simulated_bench import Noise, SimulatedBench
from tests.toolkit.small_family import needs_compiler, small_family

pytestmark = pytest.mark.glslang

FAMILY = small_family(
    space=Space(
        Choice("WORKGROUP", (8, 16), default=16),
        Choice("ROWS", (1, 2), default=1),
        Choice("TWIN", (0, 1, 2), default=0),  # the template knows nothing of it
        Choice("FAULT", ("none",), default="none"),
    )
)
PROBLEM = Problem(M=67, K=64)
DEFAULT = FAMILY.space.declared_default


class Counting(SimulatedBench):
    """Says which programs were measured, and makes the one that is told slower by half."""

    def __init__(self, slower: bool = False) -> None:
        super().__init__(FAMILY, PROBLEM, Noise(0.0, 0.0, outliers=0.0), 1)
        self.measured: Counter[str] = Counter()
        self._slower = 1.5 if slower else 1.0

    def measure_module(
        self, blank: Measurement, module: ShaderModule, incumbent_ns: float | None = None
    ) -> Measurement:
        self.measured[module.sha256] += 1
        return super().measure_module(blank, module, incumbent_ns)

    def true_ns(self, variant: str) -> float:
        return self._slower * super().true_ns(variant)

    def measure_again(self, params: Mapping[str, Any]) -> Measurement:
        found = super().measure_again(params)
        self.measured[found.spirv_sha256] -= 1  # a reference, not a trial
        return found


def session(study: optuna.Study, trials: int, folder: Path, slower: bool = False) -> Counting:
    configs = FAMILY.space.valid(Counting().info)
    sampler = EnumeratedSampler(configs, [DEFAULT], strategy="random", seed=4)
    study.sampler = sampler
    bench = Counting(slower)
    journal = Journal(folder / "journal.jsonl")
    search = Search(study, sampler, bench, journal, DEFAULT, Budget(trials))
    search.run()
    bench.found = search.corrected()  # type: ignore[attr-defined]
    return bench


def test_over_several_sessions_each_program_is_measured_once(tmp_path: Path) -> None:
    needs_compiler()
    study = optuna.create_study()
    benches = [session(study, trials, tmp_path, trials > 4) for trials in (4, 8, 12)]
    total: Counter[str] = sum((bench.measured for bench in benches), Counter())
    assert len(total) == 4
    assert set(total.values()) == {1}
    found = benches[-1].found  # type: ignore[attr-defined]
    assert len(found) == 12
    taken_over = [m for m in found if m.note.startswith(SAME)]
    assert len(taken_over) == 8
    by_name = {m.variant: m for m in found}
    for m in taken_over:
        first = by_name[original(m)]
        assert not first.note
        # The device is half as slow again since: that is not in what was measured before.
        assert m.corrected_ns == first.corrected_ns
    values = {FAMILY.variant(F32, t.params).name: t.value for t in study.get_trials()}
    assert all(values[m.variant] == values[original(m)] for m in taken_over)


def test_what_was_lost_or_is_of_another_family_is_not_recalled() -> None:
    needs_compiler()
    bench = Counting()
    measured = bench.measure(DEFAULT)
    twin = {**DEFAULT, "TWIN": 1}
    fresh = Counting()
    fresh.recall([
        replace(measured, outcome=Outcome.TIMED_OUT), replace(measured, variant="small/f32/OTHER3"),
        replace(measured, spirv_sha256=""),
    ])  # fmt: skip
    assert fresh.measure(twin).note == ""
    other = Counting()
    other.recall([replace(measured, outcome=Outcome.WRONG_RESULT, reason="wrong")])
    again = other.measure(twin)
    assert (again.outcome, again.note) == (Outcome.WRONG_RESULT, f"{SAME} {measured.variant}")
    assert not other.measured
