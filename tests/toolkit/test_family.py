from dataclasses import replace

import pytest

from kernelforge.errors import SpaceError
from kernelforge.families import declared_families, get_family, load_families
from kernelforge.family import unfit
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F16, F32
from tests.toolkit.fixtures.saxpy import SAXPY

ADDRESSES = replace(GENERIC, features=frozenset({"buffer_device_address"}))
PLAIN = Signature(bindings=(), push_constants=(), grid=Grid(), workgroup=64)


def bindings(count):
    return tuple(Binding(f"b{i}", F32, (1,)) for i in range(count))


@pytest.mark.parametrize(
    ("change", "device", "reason"),
    [
        ({}, {}, None),
        ({"workgroup": 128}, {}, None),
        ({"workgroup": 129}, {}, "workgroup of 129, at most 128"),
        ({"workgroup": 0}, {}, "workgroup of 0"),
        ({"workgroup": 128}, {"max_workgroup_size": (64, 64, 64)}, "at most 64"),
        ({"features": ("float16",)}, {}, "needs float16"),
        ({"features": ("flying",)}, {}, "feature flying is not known"),
        ({"bindings": bindings(16)}, {}, None),
        ({"bindings": bindings(17)}, {}, "17 bindings, at most 16"),
        ({"addressing": "address"}, {}, "needs buffer_device_address"),
        (
            {"addressing": "address", "bindings": bindings(17)},
            {"features": frozenset({"buffer_device_address"})},
            "136 bytes of push constants, at most 128",
        ),
        (
            {"push_constants": tuple(PushConstant(f"c{i}") for i in range(33))},
            {},
            "132 bytes of push constants, at most 128",
        ),
        ({"subgroup": 32}, {"subgroup_size": 32}, None),
        ({"subgroup": 32}, {"subgroup_size": 64}, "needs subgroup_size_control"),
        (
            {"subgroup": 32},
            {"subgroup_size": 64, "features": frozenset({"subgroup_size_control"})},
            None,
        ),
        (
            {"subgroup": 4},
            {
                "subgroup_size": 8,
                "subgroup_min": 8,
                "features": frozenset({"subgroup_size_control"}),
            },
            "subgroup of 4, 8 to 128 possible",
        ),
    ],
)
def test_a_signature_fits_a_device_within_its_limits(change, device, reason):
    found = unfit(replace(PLAIN, **change), replace(GENERIC, **device))
    assert (found is None) if reason is None else (reason in found)


def test_valid_drops_what_the_space_allows_and_the_limits_do_not():
    assert any(p["WORKGROUP"] == 256 for p in SAXPY.space.valid(GENERIC))
    found = SAXPY.valid("f32", GENERIC)
    assert {p["WORKGROUP"] for p in found} == {32, 64, 128}
    assert all(SAXPY.fits("f32", p, GENERIC) is None for p in found)
    assert {p["ADDRESS"] for p in SAXPY.valid("f32", ADDRESSES)} == {False, True}


def test_default_keeps_to_the_limits_of_the_device():
    small = replace(GENERIC, max_workgroup_invocations=32)
    assert SAXPY.default("f32", GENERIC)["WORKGROUP"] == 64
    assert SAXPY.default("f32", small)["WORKGROUP"] == 32
    told = r"none of 16 .* limits: workgroup invocations \(workgroup of 64, at most 16\)"
    with pytest.raises(SpaceError, match=told):
        SAXPY.default("f32", replace(GENERIC, max_workgroup_invocations=16))


def test_precision_takes_a_name_or_an_element_type():
    assert SAXPY.precision("f32") is SAXPY.precision(F32) is F32
    with pytest.raises(SpaceError, match="saxpy has no precision f16; it has f32"):
        SAXPY.precision(F16)


def test_a_problem_of_other_dimensions_is_refused():
    assert SAXPY.refuses(Problem(M=3)) is None
    assert "needs the dimensions M" in SAXPY.refuses(Problem(M=3, K=2))
    ruled = replace(
        SAXPY, problem_rule=lambda p: "M is odd" if p["M"] % 2 else None, corner_problems=()
    )
    assert ruled.refuses(Problem(M=3)) == "M is odd"
    with pytest.raises(SpaceError, match="lists problem M3, but M is odd"):
        replace(ruled, corner_problems=(Problem(M=3),))


def test_a_problem_is_completed_with_the_family_s_defaults_in_the_family_s_order():
    gemv = get_family("gemv")
    assert str(gemv.completed(Problem(K=64, M=32))) == "M32.K64.S1.T1.X32.Y32"
    assert str(gemv.completed(Problem(Y=16, M=32, K=64, S=2))) == "M32.K64.S2.T1.X32.Y16"
    assert "needs the dimensions" in gemv.refuses(gemv.completed(Problem(M=32, T=2)))


@pytest.mark.parametrize("change", [{"name": "Saxpy"}, {"precisions": ()}, {"defaults": {"K": 1}}])
def test_a_wrong_family_is_refused_at_once(change):
    with pytest.raises(SpaceError):
        replace(SAXPY, **change)


def test_families_are_found_by_file_name():
    families = load_families()
    assert list(families) == sorted(families)
    assert all(get_family(name) is family for name, family in families.items())


def test_a_module_declares_the_families_at_its_top_level():
    assert declared_families("tests.toolkit.fixtures.saxpy") == {"saxpy": SAXPY}


def test_an_unknown_family_is_refused():
    with pytest.raises(SpaceError, match="no kernel family 'teapot'"):
        get_family("teapot")
