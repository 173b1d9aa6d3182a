"""gemm_coop2: what a device must list for either scope, and sums that are exact."""

from dataclasses import replace

import numpy as np
import pytest

from kernelforge.compile import compile_variant, missing_extensions, validate
from kernelforge.families.gemm_coop2 import GEMM_COOP2
from kernelforge.traits.matrices import stored_weight
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.spirv import reflect
from kernelforge_runtime.dtypes import F16
from tests.families.running import run, variants

HALVES = ("f16", "f16", "f32", "f32")
WITH_MATRICES = replace(
    GENERIC,
    api_version=(1, 3, 0),
    features=GENERIC.features
    | {"cooperative_matrix", "float16", "storage16", "matrix_elements", "matrix_flexible"}
    | {"matrix_tensors", "matrix_workgroup"},
    subgroup_size=32,
    subgroup_min=32,
    subgroup_max=32,
    max_workgroup_invocations=512,
    max_workgroup_size=(512, 1, 1),
)


def scopes(device):
    """Workgroup sizes by scope."""
    found = {}
    for params in GEMM_COOP2.valid(F16, device):
        found.setdefault(params["SCOPE"], set()).add(params["WORKGROUP"])
    return found


def test_a_device_gets_the_scopes_and_workgroups_that_it_lists():
    workgroup = (32, 16, 16, *HALVES, "workgroup", 128, 256)
    subgroup = (16, 16, 16, *HALVES, "subgroup", 0, 256)
    assert scopes(WITH_MATRICES) == {}
    assert scopes(replace(WITH_MATRICES, flexible_matrices=(workgroup,))) == {"workgroup": {128}}
    assert scopes(replace(WITH_MATRICES, flexible_matrices=(subgroup,))) == {"subgroup": {32}}
    integers = (32, 16, 16, "i8", "i8", "i32", "i32", "workgroup", 128, 256)
    assert scopes(replace(WITH_MATRICES, flexible_matrices=(integers,))) == {}


def test_tiles_are_multiples_of_what_is_listed_and_no_larger_than_the_largest():
    listed = (64, 32, 32, *HALVES, "workgroup", 256, 128)
    found = GEMM_COOP2.valid(F16, replace(WITH_MATRICES, flexible_matrices=(listed,)))
    assert {p["BM"] for p in found} == {64, 128}
    assert {p["BT"] for p in found} == {32, 64, 128}
    assert {p["BK"] for p in found} == {32, 64}


@pytest.mark.parametrize("feature", ["matrix_elements", "matrix_workgroup", "matrix_tensors"])
def test_matrices_of_a_workgroup_need_every_feature_of_theirs(feature):
    listed = (32, 16, 16, *HALVES, "workgroup", 128, 256)
    features = WITH_MATRICES.features - {feature}
    assert scopes(replace(WITH_MATRICES, flexible_matrices=(listed,), features=features)) == {}


def test_float32_activations_are_refused():
    problem = Problem(M=32, K=32, S=1, T=16, X=32, Y=32)
    assert GEMM_COOP2.refuses(problem) == "activations must have 16 bits, found X=32"


@pytest.mark.glslang
@pytest.mark.parametrize(
    "change", [{}, {"ADDRESS": True}, {"Y": 16, "BM": 32, "GROUP": 8}], ids=str
)
def test_matrices_of_a_workgroup_compile_to_valid_spirv_where_no_device_has_them(change):
    if missing := missing_extensions(GEMM_COOP2):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    params = {**GEMM_COOP2.space.declared_default, **change}
    module = compile_variant(GEMM_COOP2, F16, params)
    assert reflect(module.spirv).version == (1, 6)
    assert "matrix_tensors" in reflect(module.spirv).features
    validate(module)


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize("tokens", [1, 19])
def test_sums_of_whole_numbers_are_exact_and_end_with_the_last_token(device, rng, tokens):
    if not device.info.flexible_matrices:
        pytest.skip(f"{device.info.name} has no flexible matrices")
    if missing := missing_extensions(GEMM_COOP2):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    problem = Problem(M=64, K=96, S=1, T=tokens, X=16, Y=32)
    whole = rng.integers(-8, 9, (64, 96)).astype(np.float32)
    given = GEMM_COOP2.inputs(problem, F16, rng) | stored_weight(whole, F16)
    given["in_x"] = rng.integers(-4, 5, (1, tokens, 96)).astype(np.float16)
    given["route"][:, 2] = 0
    exact = given["in_x"][0].astype(np.float32) @ whole.T
    for params in variants(GEMM_COOP2, F16, device, problem):
        found = run(device, GEMM_COOP2, F16, params, problem, given)["out_y"]
        np.testing.assert_array_equal(found, exact, str(params))
