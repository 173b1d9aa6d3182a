"""The table of what conformance checked counts each variant once and each check."""

from __future__ import annotations

from tests.families.tally import table
from tests.scheduling import group_of

HERE = ("gemv", "f16", "llvmpipe", "M1", [11, 12, 13], False, "")
THERE = ("gemv", "f16", "swiftshader", "M1", [12, 13], True, "")
NOWHERE = ("coop", "f16", "llvmpipe", "M1", [], True, "no such extension")


def test_a_variant_counts_once_and_each_of_its_checks_too() -> None:
    header, row, total = table([HERE, THERE])
    assert header.split() == [
        "family", "precision", "problems", "variants", "fewest", "checks", "devices",
    ]  # fmt: skip
    assert row.split(maxsplit=7) == [
        "gemv", "f16", "1", "3", "2", "(all)", "5", "llvmpipe, swiftshader",
    ]  # fmt: skip
    assert total.split() == ["in", "all", "1", "3", "5"]


def test_fewest_is_marked_only_where_the_family_has_no_others() -> None:
    assert "3 " in table([HERE])[1]
    assert "(all)" not in table([HERE])[1]


def test_what_is_left_out_has_a_row_without_counts_and_its_reason() -> None:
    lines = table([HERE, NOWHERE])
    assert lines[1].split() == ["coop", "f16", "0", "0", "-", "0", "-"]
    assert lines[-1] == "left out 1: no such extension (coop f16 M1)"


def test_tests_of_a_file_stay_in_one_process_and_of_conformance_those_of_a_precision():
    first, second = "tests/models/test_a.py::test_x[1-a::b]", "tests/models/test_a.py::test_y"
    assert group_of(first) == group_of(second) != group_of("tests/models/test_b.py::test_x")
    corner = "tests/families/test_conformance.py::test_corner[{}-llvmpipe]"
    f16, other, q8 = (corner.format(v) for v in ("gemm-f16-M1.K2", "gemm-f16-M5", "gemm-q8-M1.K2"))
    assert group_of(f16) == group_of(other) != group_of(q8)
