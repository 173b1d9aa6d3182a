"""gemm_coop2: gemm by matrices of a whole workgroup, which the driver brings from memory itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.traits.choices import ADDRESS, addressing, refuses_matrices
from kernelforge.traits.products import (
    PRODUCT_CONSTANTS,
    PRODUCT_DIMS,
    product_bindings,
    product_cost,
    product_inputs,
    product_oracle,
)
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F16, DType

TOLERANCE = 128.0
"""As gemm_coop's; the sums are float32, in an order that is the driver's."""


def _is_offered(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    for m, n, k, *types, scope, invocations, largest in device.flexible_matrices:
        if types != ["f16", "f16", "f32", "f32"] or scope != p["SCOPE"]:
            continue
        if p["BM"] % m or p["BT"] % n or p["BK"] % k or max(p["BM"], p["BT"]) > largest:
            continue
        if scope == "subgroup" or invocations == p["WORKGROUP"]:
            return True
    return False


def _is_one_subgroup(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    return bool(device.subgroup_min <= p["WORKGROUP"] <= device.subgroup_max)


def _shared_bytes(p: Mapping[str, Any]) -> int:
    return 0 if p["SCOPE"] == "workgroup" else int(2 * p["BT"] * (p["BK"] + 8))


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    whole = p["SCOPE"] == "workgroup"
    features = ("cooperative_matrix", "float16", "matrix_elements", "matrix_flexible", "storage16")
    return Signature(
        bindings=product_bindings(precision, p),
        push_constants=PRODUCT_CONSTANTS,
        grid=Grid(x=(CeilDiv("M", p["BM"]),), y=(CeilDiv("T", p["BT"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=0 if whole else p["WORKGROUP"],
        addressing=addressing(p),
        features=(*features, "matrix_tensors", "matrix_workgroup") if whole else features,
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def _refuses(problem: Problem) -> str | None:
    if problem["X"] != 16:
        return f"activations must have 16 bits, found X={problem['X']}"
    return refuses_matrices(problem)


GEMM_COOP2 = KernelFamily(
    name="gemm_coop2",
    template="gemm_coop2.comp.j2",
    dims=PRODUCT_DIMS,
    precisions=(F16,),
    space=Space(
        Choice(
            "SCOPE",
            ("workgroup", "subgroup"),
            default="workgroup",
            needs={"workgroup": "matrix_workgroup", "subgroup": "matrix_flexible"},
        ),
        Choice("WORKGROUP", (8, 16, 32, 64, 128, 256, 512), default=128),
        Choice("BM", (32, 64, 128, 256), default=128),
        Choice("BT", (8, 16, 32, 64, 128, 256), default=64),
        Choice("BK", (16, 32, 64), default=32),
        Choice("GROUP", (0, 8), default=0),
        ADDRESS,
        Choice("X", (16,), default=16),
        Choice("Y", (32, 16), default=32),
        ProblemConstraint(
            "compiled for these activations",
            lambda p, d, problem: p["X"] == problem["X"] and p["Y"] == problem["Y"],
        ),
        Constraint("the device has matrices of this scope and size", _is_offered),
        Constraint("its SPIR-V is that of Vulkan 1.3", lambda p, d: d.api_version >= (1, 3)),
        Constraint(
            "a subgroup's matrices are those of one subgroup, of one block of rows",
            lambda p, d: p["SCOPE"] == "workgroup" or (_is_one_subgroup(p, d) and p["BM"] == 32),
        ),
        Constraint(
            "without tensors, x comes in parts of K that have no rest",
            lambda p, d: p["SCOPE"] == "workgroup" or p["BK"] <= 32,
        ),
        Constraint(
            # They compile each of the sums by itself.
            "software devices take small tiles",
            lambda p, d: d.device_type != "cpu" or p["BM"] * p["BT"] <= 32 * 8,
        ),
        Constraint(
            "sums fit the registers", lambda p, d: p["BM"] * p["BT"] <= 128 * p["WORKGROUP"]
        ),
        Constraint(
            "the tile of x fits the shared memory",
            lambda p, d: _shared_bytes(p) <= d.max_shared_memory,
        ),
    ),
    signature=signature,
    inputs=product_inputs,
    oracle=product_oracle,
    cost=product_cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=16, Y=32),
        Problem(M=96, K=64, S=3, T=5, X=16, Y=32),
        Problem(M=160, K=544, S=2, T=37, X=16, Y=16),
        Problem(M=320, K=96, S=3, T=70, X=16, Y=32),
        Problem(M=64, K=96, S=1, T=15, X=16, Y=16),
        Problem(M=64, K=96, S=1, T=17, X=16, Y=32),
    ),
    default_problems=tuple(Problem(M=3072, K=768, S=1, T=256, X=16, Y=y) for y in (32, 16)),
    defaults={"S": 1, "X": 16, "Y": 32},
    tolerance=TOLERANCE,
    requires=("GL_KHR_cooperative_matrix", "GL_NV_cooperative_matrix2"),
    problem_rule=_refuses,
)
