"""Signatures: sizes, push constants as bytes, and the manifest form."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelforge.families import load_families
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.signature import MAX_SCRATCH_BYTES, Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F32, U32
from kernelforge_runtime.errors import PlanError

SIGNATURE = Signature(
    bindings=(
        Binding("weight", BF16, ("M", "K")),
        Binding("route", U32, ("M/32", 4)),
        Binding("out_y", F32, ("T", "M"), "readwrite"),
    ),
    push_constants=(PushConstant("M"), PushConstant("eps", F32), PushConstant("K")),
    grid=Grid((CeilDiv("M", 8),)),
    workgroup=64,
    subgroup=8,
    addressing="address",
    features=("subgroup_arithmetic",),
    fixed=(("N", 64),),
)


def test_bindings_know_their_extent_and_bytes():
    dims = {"M": 65, "K": 3, "T": 2}
    weight, route, out = SIGNATURE.bindings
    assert (weight.extent(dims), weight.nbytes(dims)) == ((65, 3), 390)
    assert (route.extent(dims), route.nbytes(dims)) == ((3, 4), 48)
    assert (out.extent(dims), out.nbytes(dims)) == ((2, 65), 520)


@given(st.integers(1, 2**31 - 1), st.integers(1, 9_999_999))
def test_a_divided_extent_is_rounded_up(size, divisor):
    (extent,) = Binding("x", F32, (f"M/{divisor}",)).extent({"M": size})
    assert (extent - 1) * divisor < size <= extent * divisor


def test_a_binding_names_the_dimension_that_it_lacks():
    with pytest.raises(PlanError, match=r"binding route needs dimension 'M'; have \['K'\]"):
        SIGNATURE.bindings[1].nbytes({"K": 1})


def test_push_constants_are_packed_in_order_behind_the_addresses():
    packed = SIGNATURE.pack_constants({"K": 7, "M": 5, "eps": 0.5, "other": 1})
    assert packed == struct.pack("<IfI", 5, 0.5, 7)
    assert SIGNATURE.push_constant_bytes == 3 * 8 + 12


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "1", None])
def test_an_unsigned_constant_out_of_range_is_refused(value):
    with pytest.raises(PlanError, match=r"push constant M=.*expected 0 to 2\^32-1"):
        SIGNATURE.pack_constants({"M": value, "eps": 0.5, "K": 1})


@pytest.mark.parametrize("value", [1e39, "x", None])
def test_a_float_constant_that_is_none_is_refused(value):
    with pytest.raises(PlanError, match="push constant eps"):
        SIGNATURE.pack_constants({"M": 1, "eps": value, "K": 1})


def test_a_missing_constant_is_named():
    with pytest.raises(PlanError, match="push constant eps has no value"):
        SIGNATURE.pack_constants({"M": 1, "K": 1})


def test_fixed_dimensions_decide_what_is_served():
    assert SIGNATURE.serves({"N": 64, "T": 3})
    assert not SIGNATURE.serves({"N": 32})
    assert not SIGNATURE.serves({})


def test_multiples_and_memory_of_its_own_decide_what_is_served():
    aligned = replace(SIGNATURE, multiples=(("M", 32), ("T", 8)))
    assert aligned.serves({"N": 64, "M": 96, "T": 8})
    for wrong in ({"M": 95, "T": 8}, {"M": 96, "T": 9}, {"M": 16, "T": 8}, {"M": 96}):
        assert not aligned.serves({"N": 64, **wrong})
    own = Binding("held", F32, (8, "T"), "scratch")
    greedy = replace(SIGNATURE, bindings=(*SIGNATURE.bindings, own))
    assert greedy.serves({"N": 64, "T": MAX_SCRATCH_BYTES // 32})
    assert not greedy.serves({"N": 64, "T": MAX_SCRATCH_BYTES // 32 + 1})
    assert not greedy.serves({"N": 64})
    for limited in (aligned, greedy):
        assert limited.is_limited
        assert Signature.from_json(limited.to_json()) == limited
    assert not SIGNATURE.is_limited


def test_every_signature_of_every_family_comes_back_from_its_manifest_form():
    assert Signature.from_json(SIGNATURE.to_json()) == SIGNATURE
    for family in load_families().values():
        for precision in family.precisions:
            signature = family.signature(precision, family.space.declared_default)
            assert Signature.from_json(signature.to_json()) == signature


WRONG = [
    {"addressing": "pointer"},
    {"bindings": [["x", "f32", ["M"]]]},
    {"bindings": [["x", "f64", ["M"], "read"]]},
    {"bindings": [["x", "f32", ["m"], "read"]]},
    {"bindings": [["x", "f32", ["M/0"], "read"]]},
    {"bindings": [["x", "f32", [0], "read"]]},
    {"bindings": [["x", "f32", [True], "read"]]},
    {"bindings": [["x", "f32", ["M"], "append"]]},
    {"bindings": None},
    {"push_constants": [["M"]]},
    {"workgroup": -1},
    {"workgroup": 64.0},
    {"subgroup": True},
    {"features": None},
    {"fixed": []},
    {"fixed": {"N": "64"}},
    {"multiples": [32]},
    {"multiples": {"M": 32.0}},
    {"grid": []},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_wrong_form_is_refused_in_one_line(change):
    with pytest.raises(PlanError) as caught:
        Signature.from_json({**SIGNATURE.to_json(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [], {}, "signature", 7])
def test_what_is_no_signature_at_all_is_refused(data):
    with pytest.raises(PlanError):
        Signature.from_json(data)
