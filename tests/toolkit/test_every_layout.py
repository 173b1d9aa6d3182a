"""Finalists of every layout: a matrix's other readers may need what this family does not want."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernelforge.families.gemv import GEMV
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.measure.timed_problem import Effort
from kernelforge.space import Choice, Constraint, Space
from kernelforge.tune.budget import Budget
from kernelforge.tune.every_layout import (
    ORIGIN,
    LayoutTrials,
    layouts_of,
    signature_of,
    with_every_layout,
)
from kernelforge.tune.journal import Journal, read_journal
from kernelforge.tune.study import TuneResult, tune_problem
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler, signature, small_family


def measured(layout: str, rows: int, ns: float, outcome: Outcome = Outcome.OK) -> Measurement:
    params = {**GEMV.space.declared_default, "LAYOUT": layout, "ROWS": rows}
    return Measurement(
        family="gemv",
        precision="f32",
        problem="M64.K64.S1.T1.X32.Y32",
        variant=GEMV.variant(F32, params).name,
        device="llvmpipe",
        driver="",
        outcome=outcome,
        median_ns=ns,
    )


def test_the_best_of_each_layout_joins_the_finals() -> None:
    fast = [measured("by4", 4, 10), measured("by4", 8, 11)]
    found = [
        *fast,
        measured("rows", 1, 30),
        measured("rows", 2, 20),
        measured("by8", 8, 5, Outcome.WRONG_RESULT),
        measured("gap", 2, 90),
    ]
    finals = with_every_layout(GEMV, F32, fast, found)
    assert finals[:2] == fast
    assert [m.median_ns for m in finals[2:]] == [20, 90]
    assert [layouts_of(GEMV, F32, m) for m in finals[2:]] == [(), (("weight", "M K+16"),)]


def padded_signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    """Of the small family, its matrix with a gap behind each row."""
    plain = signature(precision, params)
    weight, *others = plain.bindings
    layout = f"M K+{params['PAD']}" if params["PAD"] else ""
    multiples = (("M", 64),) if params["WORKGROUP"] == 64 else ()
    return replace(plain, bindings=(replace(weight, layout=layout), *others), multiples=multiples)


PADDED = small_family(
    space=Space(
        Choice("WORKGROUP", (8, 16, 32, 64), default=16),
        Choice("ROWS", (1, 2, 4), default=1),
        Choice("PAD", (0, 8, 16), default=0),
        Choice("FAULT", ("none",), default="none"),
        Constraint("no", lambda p, device: (p["ROWS"], p["PAD"]) != (4, 16)),
    ),
    signature=padded_signature,
)
CONFIGS = PADDED.space.valid(GENERIC)


def number(workgroup: int, rows: int, pad: int) -> int:
    return CONFIGS.index({"WORKGROUP": workgroup, "ROWS": rows, "PAD": pad, "FAULT": "none"})


def wanted_in_turn(seen: dict[int, float | None], asked: str, most: int = 99) -> list[int]:
    """What is asked for until nothing is; each takes 50."""
    trials, found = LayoutTrials(PADDED, F32, CONFIGS), []
    while len(found) < most and (index := getattr(trials, asked)(seen)) is not None:
        assert index not in seen
        seen[index] = 50.0
        found.append(index)
    return found


def test_the_fastest_is_wanted_in_every_layout_or_what_is_nearest_to_it_there() -> None:
    seen: dict[int, float | None] = {number(16, 1, 0): 30.0, number(32, 4, 0): 20.0}
    first, second = wanted_in_turn(seen, "missing")
    assert {first, second} == {number(32, 4, 8), number(32, 2, 16)}


def test_a_kernel_for_some_sizes_is_not_wanted_but_its_like_for_all_of_them_is() -> None:
    seen: dict[int, float | None] = {number(64, 2, 8): 20.0, number(8, 1, 8): math.inf}
    found = [CONFIGS[i] for i in wanted_in_turn(seen, "missing")]
    assert sorted((c["PAD"], c["ROWS"]) for c in found) == [(0, 2), (8, 2), (16, 2)]
    assert all(c["WORKGROUP"] == 32 for c in found)


def test_where_the_winner_fails_in_a_layout_one_more_is_tried_and_a_running_one_is_left() -> None:
    seen: dict[int, float | None] = {number(16, 2, 0): 20.0, number(16, 2, 8): math.inf}
    found = wanted_in_turn(seen, "missing")
    assert len(found) == 2
    assert number(16, 2, 16) in found
    (other,) = {*found} - {number(16, 2, 16)}
    assert CONFIGS[other]["PAD"] == 8
    running: dict[int, float | None] = {number(16, 2, 0): 20.0, number(16, 2, 8): None}
    assert wanted_in_turn(running, "missing") == [number(16, 2, 16)]


def test_nothing_is_wanted_before_anything_was_right() -> None:
    seen: dict[int, float | None] = {number(16, 2, 0): math.inf, number(8, 2, 0): None}
    assert wanted_in_turn(seen, "missing") == wanted_in_turn(seen, "neighbour") == []


def test_neighbours_lie_beside_the_best_of_each_other_layout_in_turns() -> None:
    seen: dict[int, float | None] = {
        number(16, 2, 0): 20.0, number(16, 2, 8): 30.0, number(16, 1, 16): 40.0,
    }  # fmt: skip
    found = [CONFIGS[i] for i in wanted_in_turn(dict(seen), "neighbour")]
    assert [c["PAD"] for c in found[:4]] == [8, 16, 8, 16]
    assert {(c["WORKGROUP"], c["ROWS"]) for c in found if c["PAD"] == 8} == {
        (8, 2), (32, 2), (16, 1), (16, 4),
    }  # fmt: skip
    assert {(c["WORKGROUP"], c["ROWS"]) for c in found if c["PAD"] == 16} == {
        (8, 1), (32, 1), (16, 2),
    }  # fmt: skip


def test_a_space_of_one_layout_wants_nothing() -> None:
    family = small_family()
    configs = family.space.valid(GENERIC)
    trials = LayoutTrials(family, F32, configs)
    assert not trials.several
    assert trials.missing({3: 1.0}) is trials.neighbour({3: 1.0}) is None


@pytest.mark.parametrize("trials", [1, 3, 4, 8, 12, 40, 150])
def test_of_a_study_s_trials_a_quarter_at_most_is_kept_for_layouts(trials: int) -> None:
    whole = LayoutTrials(PADDED, F32, CONFIGS)
    assert whole.kept(trials) == (
        0 if trials >= len(CONFIGS) else min(2 + trials // 10, trials // 4)
    )
    rows = LayoutTrials(PADDED, F32, [c for c in CONFIGS if not c["PAD"] and c["WORKGROUP"] < 64])
    assert rows.kept(trials) == 0


def tuned(device: Device, folder: Path, trials: int, **budget: float) -> TuneResult:
    return tune_problem(
        device, PADDED, F32, Problem(M=67, K=64), Budget(trials, **budget),
        Journal(folder / "journal.jsonl"), folder / "optuna.log",
        effort=Effort(sample_ns=2e5, samples=4, longest_sample_ns=2e6),
    )  # fmt: skip


@pytest.mark.vulkan
@pytest.mark.glslang
def test_every_layout_gets_the_winner_s_parameters_within_the_trials_that_were_asked_for(
    llvmpipe: Device, tmp_path: Path
) -> None:
    needs_compiler()
    result = tuned(llvmpipe, tmp_path, 8)
    assert len(result.trials) == len({m.variant for m in result.trials}) == 8
    origins = [m.origin for m in result.trials]
    searched = origins.index(ORIGIN)
    assert searched == 6
    # Each of these is of another layout than the winner so far, which one of them may become.
    for at in range(searched, 8):
        fastest = min(result.trials[:at], key=lambda m: m.time_ns)
        assert result.trials[at].origin == ORIGIN
        own, tried = (signature_of(PADDED, F32, m).layouts for m in (fastest, result.trials[at]))
        assert own != tried
    layouts = {signature_of(PADDED, F32, m).layouts for m in result.finalists}
    assert len(layouts) == 3
    for final in result.finalists:
        assert final.ok
        assert final.tolerance > 0
        assert final.samples_ns
    again = tuned(llvmpipe, tmp_path, 8)
    assert again.trials == result.trials
    assert len(tuned(llvmpipe, tmp_path, 11).trials) == 11
    kept = [m for m in read_journal(tmp_path / "journal.jsonl") if m.phase == "trial"]
    assert len(kept) == 11
    assert len(tuned(llvmpipe, tmp_path / "few", 2).trials) == 2
    assert tuned(llvmpipe, tmp_path / "late", 9, seconds=0.001).trials[1:] == ()
