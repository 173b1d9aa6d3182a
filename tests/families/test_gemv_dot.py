"""gemv_dot: every way to multiply and to round, and what rounding the inputs costs."""

from dataclasses import replace

import numpy as np
import pytest

from kernelforge.compile import buildable
from kernelforge.compile.coverage import gaps
from kernelforge.families.gemv import GEMV
from kernelforge.families.gemv_dot import GEMV_DOT
from kernelforge.traits.matrices import stored_weight
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import route_code
from kernelforge_runtime.dtypes import Q8
from tests.families.running import assert_close, run, variants

DOTS = ("plain", "packed", "saturating")
WAYS = tuple(
    {"DOT": dot, "ROUND": round_, **shape}
    for dot, round_, shape in (
        ("plain", "lane", {"REDUCE": "subgroup", "WORKGROUP": 16, "LANES": 4}),
        ("packed", "shuffle", {"REDUCE": "shared", "WORKGROUP": 32, "LANES": 8, "VEC": 2}),
        ("packed", "lane", {"REDUCE": "hybrid", "WORKGROUP": 16, "LANES": 16, "VEC": 1}),
        ("saturating", "lane", {"REDUCE": "shared", "ADDRESS": True, "LAYOUT": "by4"}),
    )
)
ON_A_DEVICE = [pytest.mark.vulkan, pytest.mark.glslang]


def on_a_device(test):
    for mark in ON_A_DEVICE:
        test = mark(test)
    return test


def relative(found, exact):
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


@on_a_device
def test_every_way_to_multiply_is_exact_on_whole_numbers(device, rng):
    problem = Problem(M=64, K=544, S=1, T=1, X=32, Y=32)
    weight = rng.integers(-127, 128, (64, 544)).astype(np.float32)
    weight[:, ::32] = -127
    x = rng.integers(-127, 128, (1, 1, 544)).astype(np.float32)
    x[..., 31::32] = -127
    given = {
        **GEMV_DOT.inputs(problem, Q8, rng),
        **stored_weight(weight, Q8),
        "in_x": x,
        "out_y": np.zeros((1, 64), np.float32),
    }
    given["route"][:] = [0, 544, 0, 0]
    exact = weight.astype(np.float64) @ x[0, 0].astype(np.float64)
    tried = variants(GEMV_DOT, Q8, device, problem, *WAYS)
    assert {p["DOT"] for p in tried} == set(DOTS)
    for params in tried:
        found = run(device, GEMV_DOT, Q8, params, problem, given)["out_y"][0]
        # Sums beyond 2^24 are rounded once by each lane and at each meeting.
        np.testing.assert_allclose(found, exact, rtol=1e-6, err_msg=str(params))


@on_a_device
def test_blocks_of_any_size_are_rounded_as_the_oracle_does(device, rng):
    problem = Problem(M=32, K=1024, S=1, T=1, X=32, Y=32)
    given = GEMV_DOT.inputs(problem, Q8, rng)
    sizes = np.exp2(np.linspace(-60, 60, 32)).astype(np.float32)
    sizes[[3, 9]] = 0.0, 2.0**-120
    for loud in (0, 12, 20, 31):  # each block in turn is what the sums are made of
        blocks = np.zeros((32, 32), np.float32)
        blocks[loud] = rng.standard_normal(32) * sizes[loud]
        blocks[[3, 9]] = rng.standard_normal((2, 32)) * sizes[[3, 9], None]
        given["in_x"] = blocks.reshape(1, 1, -1)
        given["route"][:] = [0, 1024, route_code(), 0]
        expected = GEMV_DOT.oracle(problem, Q8, given, {})
        for params in variants(GEMV_DOT, Q8, device, problem, WAYS[1]):
            found = run(device, GEMV_DOT, Q8, params, problem, given)
            assert_close(GEMV_DOT, problem, found, expected, params)


@on_a_device
def test_what_is_no_number_is_not_lost(llvmpipe, rng):
    problem = Problem(M=32, K=64, S=1, T=1, X=32, Y=32)
    given = GEMV_DOT.inputs(problem, Q8, rng)
    given["in_x"][0, 0, 7] = np.inf
    given["route"][:] = [0, 64, 0, 0]
    for params in variants(GEMV_DOT, Q8, llvmpipe, problem, *WAYS):
        found = run(llvmpipe, GEMV_DOT, Q8, params, problem, given)["out_y"]
        assert not np.isfinite(found).any(), params


def test_rounding_ordinary_inputs_costs_under_a_hundredth_of_the_result(rng):
    problem = Problem(M=128, K=1024, S=1, T=2, X=32, Y=32)
    given = GEMV_DOT.inputs(problem, Q8, rng)
    given["route"][:] = [0, 1024, 0, 0]
    exact = GEMV.oracle(problem, Q8, given, {})["out_y"]
    found = GEMV_DOT.oracle(problem, Q8, given, {})["out_y"]
    assert 0.001 < relative(found, exact) < 0.01


def test_an_outlier_costs_the_rest_of_its_block(rng):
    problem = Problem(M=128, K=1024, S=1, T=1, X=32, Y=32)
    given = GEMV_DOT.inputs(problem, Q8, rng)
    given["route"][:] = [0, 1024, 0, 0]
    given["in_x"][0, 0, ::32] = 1000.0
    without = given["in_x"].copy()
    without[0, 0, ::32] = 0.0
    whole = GEMV_DOT.oracle(problem, Q8, given, {})["out_y"]
    rest = {**given, "in_x": given["in_x"] - without}
    left = whole - GEMV_DOT.oracle(problem, Q8, rest, {})["out_y"]
    exact = GEMV.oracle(problem, Q8, {**given, "in_x": without}, {})["out_y"]
    assert relative(left, exact) > 0.5


def test_a_device_without_integer_dot_products_has_the_plain_way_alone():
    found = {gap.form: gap.reason for gap in gaps(GEMV_DOT, GENERIC)}
    assert found["DOT=packed"] == "needs integer_dot"
    assert "DOT=plain" not in found
    assert "" not in found


def test_a_compiler_that_cannot_write_the_instruction_is_said_to_be_the_reason(monkeypatch):
    info = replace(GENERIC, features=GENERIC.features | {"integer_dot"})
    found = {g.form: g.reason for g in gaps(GEMV_DOT, info, {"GL_EXT_spirv_intrinsics"})}
    assert found["DOT=packed"] == "the GLSL compiler does not know GL_EXT_spirv_intrinsics"
    monkeypatch.setattr("kernelforge.compile.check.accepts", lambda extension: False)
    assert "integer_dot" not in buildable(info).features


@on_a_device
def test_a_kernel_with_integer_dot_products_says_so(llvmpipe):
    if "integer_dot" not in buildable(llvmpipe.info).features:
        pytest.skip(f"{llvmpipe.info.name}, or the compiler, has no integer dot products")
    params = {**GEMV_DOT.space.declared_default, "DOT": "packed"}
    assert GEMV_DOT.signature(Q8, params).features == ("integer_dot",)
    assert GEMV_DOT.fits(Q8, params, GENERIC) == "needs integer_dot"
