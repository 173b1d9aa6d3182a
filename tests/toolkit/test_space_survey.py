"""What `inspect --space` counts; a device's limits are checked before anything is built."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from kernelforge.compile import compile_variant, find_compiler, missing_extensions
from kernelforge.errors import CompileError, SpaceError
from kernelforge.families import get_family, load_families
from kernelforge.family import misfits, misfits_at, unfit
from kernelforge.measure.measurement import Outcome
from kernelforge.measure.programs import Programs
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge.space_survey import AT_PROBLEM, FEATURE, LIMIT, REPEAT, RULE, TOO_LARGE, survey
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.spirv import reflect
from kernelforge_runtime.dtypes import F32
from tests.toolkit.cli_process import kernelforge, one_line
from tests.toolkit.small_family import small_family

try:
    find_compiler()
    COMPILER = ""
except CompileError as error:
    COMPILER = str(error)
glslang = pytest.mark.skipif(bool(COMPILER), reason=f"no GLSL compiler: {COMPILER}")

SPACE = Space(
    Choice("A", (1, 2, 4, 8), default=1),
    Choice("B", (1, 2, 3), default=1),
    Choice("C", ("x", "y"), default="x", needs={"y": "float16"}),
    Flag("D", needs="float16"),
    Constraint("a over b", lambda p, d: p["A"] % p["B"] == 0),
    Constraint("small", lambda p, d: p["A"] <= 4 or (p["C"] == "x" and not p["D"])),
    ProblemConstraint("enough", lambda p, d, problem: p["A"] * p["B"] <= problem["M"]),
)
POOREST = replace(GENERIC, max_shared_memory=16384, max_workgroup_invocations=256,
                  max_workgroup_size=(256, 256, 64))  # fmt: skip


def product(space):
    names = [c.name for c in space.choices]
    for values in itertools.product(*(c.values for c in space.choices)):
        yield dict(zip(names, values, strict=True))


def test_what_a_rule_refuses_alone_is_what_going_through_the_product_finds():
    for rule in SPACE.constraints[:2]:
        by_hand = sum(not rule.holds(p, GENERIC) for p in product(SPACE))
        assert SPACE.refused_alone(rule, 1000, GENERIC) == by_hand
    enough, problem = SPACE.problem_constraints[0], Problem(M=6)
    by_hand = sum(not enough.holds(p, GENERIC, problem) for p in product(SPACE))
    assert SPACE.refused_alone(enough, 1000, GENERIC, problem) == by_hand


def test_a_rule_without_an_answer_where_another_does_not_hold_counts_as_refusing():
    space = Space(
        Choice("A", (0, 1, 2, 3), default=1),
        Constraint("not none", lambda p, d: p["A"] > 0),
        Constraint("few", lambda p, d: 6 // p["A"] <= 3),
    )
    assert [space.refused_alone(rule, 99, GENERIC) for rule in space.constraints] == [1, 2]
    assert space.explain(GENERIC) == {"valid": 2, "not none": 1, "few": 1}


def test_a_rule_is_asked_about_its_own_parameters_only():
    asked = []
    big = Space(
        *(Choice(f"P{i}X", tuple(range(10)), default=0) for i in range(12)),
        Constraint("one", lambda p, d: asked.append(0) or p["P5X"] < 3),
    )
    assert big.refused_alone(big.constraints[0], 100, GENERIC) == 7 * 10**11
    assert len(asked) == 11
    assert big.refused_alone(big.constraints[0], 5, GENERIC) is None


def test_a_rule_that_asks_for_a_parameter_by_a_wrong_name_is_still_an_error():
    space = Space(Choice("A", (1, 2), default=1), Constraint("typo", lambda p, d: p["B"] > 1))
    with pytest.raises(SpaceError, match="no parameter of the space"):
        space.valid(GENERIC)


@pytest.mark.slow
def test_every_configuration_of_every_family_is_counted_once():
    for family in load_families().values():
        problem = family.default_problems[0]
        found = survey(family, family.precisions[0], POOREST, problem)
        assert found.valid + sum(r.first for r in found.reasons) == found.size, family.name
        for reason in found.reasons:
            assert reason.alone is None or reason.first <= reason.alone, (family.name, reason)
        large = {r.kind for r in found.reasons if r.first} & {TOO_LARGE}
        expected = len(family.valid(family.precisions[0], POOREST, problem))
        assert found.valid == expected or large, family.name


def test_every_kind_of_reason_is_counted():
    family = small_family(
        space=SPACE,
        signature=lambda precision, p: replace(
            small_family().signature(precision, {"WORKGROUP": 64 * p["A"], "ROWS": 1}),
            features=("int8",) if p["B"] == 3 else (),
        ),
        matters=lambda precision, p: p["C"] == "x",
    )
    able = replace(GENERIC, features=GENERIC.features | {"float16"})
    device = replace(able, max_workgroup_count=(3, 1, 1))
    found = survey(family, F32, device, Problem(M=500, K=64))
    kinds = {reason.kind for reason in found.reasons if reason.alone}
    assert kinds == {RULE, REPEAT, LIMIT, TOO_LARGE}
    found = survey(family, F32, GENERIC, Problem(M=6, K=64))
    assert {FEATURE, AT_PROBLEM} <= {reason.kind for reason in found.reasons if reason.alone}
    assert found.lacking == {"float16": ("C=y", "D=True")}


def test_all_misfits_are_told_and_unfit_tells_the_first():
    plain = small_family().signature(F32, {"WORKGROUP": 64, "ROWS": 1})
    wrong = replace(plain, workgroup=4096, subgroup=64, features=("float16",))
    device = replace(GENERIC, subgroup_size=32, subgroup_min=32, subgroup_max=32)
    names = [name for name, _ in misfits(wrong, device)]
    assert names == [
        "needs float16, subgroup_size_control",
        "workgroup invocations",
        "subgroup size",
    ]
    assert unfit(wrong, device) == "needs float16, subgroup_size_control"
    huge = Problem(M=2**23, K=64)
    told = dict(misfits_at(plain, device, huge))
    assert set(told) == {"workgroups in x", "bytes of a binding"}
    assert list(misfits_at(plain, device, Problem(M=64, K=64))) == []


@glslang
@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"max_workgroup_count": (1, 1, 1)}, "workgroups in x, at most 1"),
        ({"max_storage_buffer": 1000}, "weight has 65536 bytes, at most 1000"),
        ({"max_workgroup_invocations": 8}, "workgroup of 16, at most 8"),
        ({"max_push_constants": 4}, "8 bytes of push constants, at most 4"),
    ],
)
def test_what_is_beyond_a_limit_is_rejected_without_a_compiler_run(limits, says, monkeypatch):
    def never(*args):
        raise AssertionError("it was compiled")

    monkeypatch.setattr("kernelforge.measure.programs.compile_rendered", never)
    family, problem = small_family(), Problem(M=256, K=64)
    programs = Programs(replace(GENERIC, **limits), family, F32, problem)
    found, module = programs.prepare({"WORKGROUP": 16, "ROWS": 1, "FAULT": "none"})
    assert (found.outcome, module) == (Outcome.REJECTED, None)
    assert says in found.reason


@glslang
@pytest.mark.parametrize("name", sorted(load_families()))
def test_no_valid_variant_takes_more_shared_memory_than_the_poorest_device_has(name):
    family = get_family(name)
    if missing := missing_extensions(family):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    able = replace(POOREST, features=GENERIC.features | {"subgroup_clustered", "subgroup_shuffle"},
                   subgroup_size=8, subgroup_min=8, subgroup_max=8)  # fmt: skip
    precision = family.precisions[-1]
    found = family.valid(precision, able)
    # Numbers are what grows shared memory: the largest products of them, and a few small ones.
    found.sort(key=lambda p: _product(v for v in p.values() if type(v) is int))
    for params in {id(p): p for p in (*found[-2:], *found[: len(found) // 2 : 999])}.values():
        module = compile_variant(family, precision, params)
        assert reflect(module.spirv).shared_bytes <= able.max_shared_memory, module.name


def _product(numbers):
    result = 1
    for number in numbers:
        result *= max(1, number)
    return result


@glslang
def test_inspect_space_says_sizes_reasons_limits_and_what_cannot_be_built():
    args = ("inspect", "gemv", "--space", "--device-profile-less")
    assert kernelforge(*args).returncode == 2
    told = kernelforge("inspect", "wkv4", "--space", "--json")
    assert told.returncode == 0, told.stderr
    data = json.loads(told.stdout)
    assert data["not_built"] is None
    assert data["space"]["limits"]["shared memory bytes"].isdigit()
    text = kernelforge("inspect", "gemm_coop2", "--space", "--precision", "f16")
    assert text.returncode == 0, text.stderr  # also where nothing is valid
    assert "configurations  " in text.stdout
    wrong = kernelforge("inspect", "gemv", "--space", "--problem", "M=33,K=7")
    assert wrong.returncode == 2
    assert "M and K must be multiples of 32" in one_line(wrong.stderr, "kernelforge inspect: ")
    alone = kernelforge("inspect", "gemv", "--problem", "M=32,K=32")
    assert "--problem goes with --space" in one_line(alone.stderr, "kernelforge inspect: ")
