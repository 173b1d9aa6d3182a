import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge.errors import SpaceError
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem

RICH = replace(GENERIC, name="rich", features=frozenset({"subgroup_arithmetic", "float16", "int8"}))
POOR = replace(GENERIC, name="poor", features=frozenset())


def space(*extra):
    return Space(
        Choice("WORKGROUP", (32, 64, 128, 256), default=64),
        Choice("ROWS", (1, 2, 4), default=4),
        Choice("REDUCE", ("shared", "subgroup"), "subgroup", {"subgroup": "subgroup_arithmetic"}),
        Flag("HALF", default=True, needs="float16"),
        Constraint("group fits", lambda p, d: p["WORKGROUP"] <= d.max_workgroup_invocations),
        *extra,
    )


def test_valid_lists_the_product_in_order_without_what_the_device_cannot():
    found = space().valid(POOR)
    assert found[0] == {"WORKGROUP": 32, "ROWS": 1, "REDUCE": "shared", "HALF": False}
    assert [(p["WORKGROUP"], p["ROWS"]) for p in found] == [
        (w, r) for w in (32, 64, 128) for r in (1, 2, 4)
    ]
    assert len(space().valid(RICH)) == 3 * 3 * 2 * 2


def test_valid_returns_dictionaries_that_may_be_changed():
    s = space()
    s.valid(RICH)[0]["WORKGROUP"] = -1
    assert s.valid(RICH)[0]["WORKGROUP"] == 32


def test_a_problem_constraint_counts_only_where_a_problem_is_given():
    s = space(ProblemConstraint("rows divide", lambda p, d, problem: problem["M"] % p["ROWS"] == 0))
    assert len(s.valid(POOR)) == 9
    assert {p["ROWS"] for p in s.valid(POOR, Problem(M=6))} == {1, 2}
    assert s.default(POOR, Problem(M=6))["ROWS"] == 1
    with pytest.raises(SpaceError, match=r"'rows divide' does not hold for .*ROWS=4.* and M6"):
        s.check({"WORKGROUP": 32, "ROWS": 4, "REDUCE": "shared", "HALF": 0}, POOR, Problem(M=6))


def test_default_is_the_declared_one_where_that_is_valid():
    assert space().default(RICH) == space().declared_default


def test_default_is_else_the_valid_configuration_with_the_fewest_changes():
    assert space().default(POOR) == {
        "WORKGROUP": 64,
        "ROWS": 4,
        "REDUCE": "shared",
        "HALF": False,
    }


@pytest.mark.parametrize("rows", [2, 6, 7])
@pytest.mark.parametrize("device", [RICH, POOR], ids=["rich", "poor"])
def test_a_default_tried_for_change_by_change_is_the_one_that_enumerating_finds(
    rows, device, monkeypatch
):
    s = space(
        ProblemConstraint("rows divide", lambda p, d, problem: problem["M"] % p["ROWS"] == 0),
        Constraint("small groups", lambda p, d: p["WORKGROUP"] < 64 * p["ROWS"]),
    )
    found = s.default(device, Problem(M=rows))
    monkeypatch.setattr("kernelforge.space.NEAR", 0)
    assert s.default(device, Problem(M=rows)) == found
    assert found != s.declared_default


def test_default_of_a_space_without_a_valid_configuration_says_what_removed_them():
    with pytest.raises(SpaceError, match=r"none of 48 .* for rich.*never: 36, group fits: 12"):
        space(Constraint("never", lambda p, d: p["REDUCE"] == "neither")).default(RICH)


def test_explain_counts_every_configuration_once_by_what_removed_it():
    assert space().explain(RICH) == {"valid": 36, "group fits": 12}
    reasons = space().explain(POOR)
    assert reasons.pop("valid") == 9
    assert set(reasons) == {"group fits", "needs subgroup_arithmetic", "needs float16"}
    assert sum(reasons.values()) == 48 - 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORKGROUP": 256}, "constraint 'group fits' does not hold for WORKGROUP=256"),
        ({"WORKGROUP": 65}, "WORKGROUP=65 is not one of"),
        ({"REDUCE": "subgroup"}, "REDUCE=subgroup needs subgroup_arithmetic: poor lacks it"),
        ({"COLUMNS": 1}, "no parameter COLUMNS; the space has WORKGROUP, ROWS"),
    ],
)
def test_check_names_the_rule_that_is_broken(change, message):
    good = {"WORKGROUP": 64, "ROWS": 4, "REDUCE": "shared", "HALF": False}
    space().check(good, POOR)
    with pytest.raises(SpaceError, match=message):
        space().check(good | change, POOR)


def test_check_names_a_parameter_that_is_missing():
    with pytest.raises(SpaceError, match="parameter ROWS has no value"):
        space().check({"WORKGROUP": 64, "REDUCE": "shared", "HALF": False}, POOR)


def test_normalise_gives_flags_as_booleans_in_the_declared_order():
    found = space().normalise({"HALF": 1, "REDUCE": "shared", "ROWS": 1, "WORKGROUP": 32})
    assert list(found) == ["WORKGROUP", "ROWS", "REDUCE", "HALF"]
    assert found["HALF"] is True and found["ROWS"] is not True


def test_a_constraint_that_asks_for_an_unknown_parameter_is_reported_as_such():
    s = space(Constraint("typo", lambda p, d: p["ROW"] == 1))
    with pytest.raises(SpaceError, match="'typo' asks for 'ROW', which is no parameter"):
        s.valid(RICH)


def test_a_constraint_that_fails_is_reported_with_its_text():
    s = space(Constraint("per row", lambda p, d: 1 // (p["ROWS"] - 1) > 0))
    with pytest.raises(SpaceError, match="'per row' failed with ZeroDivisionError"):
        s.valid(RICH)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: Choice("ROWS", (1, 2), default=3),
        lambda: Choice("ROWS", (1, 1), default=1),
        lambda: Choice("ROWS", (), default=1),
        lambda: Choice("ROWS4", (1,), default=1),
        lambda: Choice("ROWS", (1, 2), 1, {2: "flying"}),
        lambda: Choice("ROWS", (1, 2), 1, {3: "float16"}),
        lambda: Flag("HALF", needs="flying"),
        lambda: Space(Flag("HALF"), Flag("HALF")),
    ],
)
def test_a_wrong_declaration_is_refused_at_once(declare):
    with pytest.raises(SpaceError):
        declare()


RULES = [
    ("first pair", lambda p, d: p["A"] <= p["B"]),
    ("last pair", lambda p, d: (p["C"] + p["D"]) % 2 == 0),
    ("short circuit", lambda p, d: p["D"] == 0 or p["A"] > 0 or p["C"] == p["B"]),
    ("get", lambda p, d: p.get("B") != 2),
    ("all", lambda p, d: sum(p.values()) < 6),
    ("items", lambda p, d: max(v for _, v in p.items()) > 0),
    ("copy", lambda p, d: dict(**p)["D"] >= 0),
    ("device", lambda p, d: d.name == "generic"),
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(RULES), unique_by=lambda r: r[0]),
    st.lists(st.integers(1, 4), min_size=4, max_size=4),
)
def test_valid_agrees_with_filtering_the_whole_product(rules, sizes):
    choices = [
        Choice(name, tuple(range(size)), 0) for name, size in zip("ABCD", sizes, strict=True)
    ]
    s = Space(*choices, *(Constraint(*rule) for rule in rules))
    product = [
        dict(zip("ABCD", v, strict=True)) for v in itertools.product(*(c.values for c in choices))
    ]
    expected = [p for p in product if all(holds(p, GENERIC) for _, holds in rules)]
    assert s.valid(GENERIC) == expected
    assert sum(s.explain(GENERIC).values()) == s.size == len(product)
    assert all(s.refuses(p, GENERIC) is None for p in expected)
    if expected:
        assert s.default(GENERIC) in expected
    else:
        with pytest.raises(SpaceError):
            s.default(GENERIC)


def test_a_million_combinations_are_filtered_without_visiting_them_all():
    asked = 0

    def equal(p, d):
        nonlocal asked
        asked += 1
        return p["A"] == p["B"] == p["C"] == p["D"]

    s = Space(*(Choice(n, tuple(range(4)), 0) for n in "ABCDEFGHIJ"), Constraint("equal", equal))
    start = time.process_time()
    assert s.size == 4**10 and len(s.valid(GENERIC)) == 4**7
    assert asked < 200
    assert time.process_time() - start < 5
