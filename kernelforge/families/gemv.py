"""gemv: matrix times vector with routed inputs; all of decode's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import (
    ADDRESS,
    ROUTE_ROWS,
    addressing,
    epilogue,
    random_route,
    refuses_unpadded,
)
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, U32, DType, decode, encode


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    groups = p["WORKGROUP"] // p["LANES"]
    whole = p["LANES"] == p["WORKGROUP"]
    features: tuple[str, ...] = ()
    if p["REDUCE"] == "butterfly":
        features = ("subgroup_shuffle",)
    elif p["REDUCE"] != "shared":
        features = ("subgroup_arithmetic",) if whole else ("subgroup_clustered",)
    return Signature(
        bindings=(
            Binding("weight", precision, ("M", "K")),
            Binding("in_x", F32, ("S", "K")),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("out_y", F32, ("M",), "readwrite"),
        ),
        push_constants=(PushConstant("K"),),
        grid=Grid(x=(CeilDiv("M", groups * p["ROWS"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if p["REDUCE"] == "subgroup" and whole else 0,
        addressing=addressing(p),
        features=features,
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs, and a random route for every 32 rows."""
    m, k, s = problem["M"], problem["K"], problem["S"]
    weight = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return {
        "weight": encode(weight, precision),
        "in_x": rng.standard_normal((s, k), dtype=np.float32),
        "route": random_route(m, s, k, k, rng),
        "out_y": rng.standard_normal(m, dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The product in float64, block by block, with each block's epilogue."""
    k = problem["K"]
    weight, x = decode(given["weight"], precision), given["in_x"].reshape(-1)
    out = given["out_y"].astype(np.float64)
    for block, (offset, _, code, _) in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        value = weight[rows].astype(np.float64) @ x[offset : offset + k]
        out[rows] = epilogue(int(code), value, out[rows])
    return {"out_y": out}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every weight is read once."""
    m, k = problem["M"], problem["K"]
    return 2.0 * m * k, m * k * precision.bits / 8 + 4.0 * (k * problem["S"] + 2 * m)


GEMV = KernelFamily(
    name="gemv",
    template="gemv.comp.j2",
    dims=("M", "K", "S"),
    precisions=(F16, BF16, F32),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("LANES", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("ROWS", (1, 2, 4, 8, 16, 32), default=2),
        Choice("VEC", (1, 2, 4), default=4),
        Choice("REDUCE", ("subgroup", "butterfly", "hybrid", "shared"), default="hybrid"),
        Choice("UNPACK", ("half", "shift"), default="half"),
        ADDRESS,
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint(
            "a workgroup's rows stay in one route block",
            lambda p, d: p["WORKGROUP"] // p["LANES"] * p["ROWS"] <= ROUTE_ROWS,
        ),
        Constraint(
            "a subgroup reduction stays inside a subgroup",
            lambda p, d: (
                p["REDUCE"] != "subgroup"
                or (p["LANES"] <= d.subgroup_min and "subgroup_clustered" in d.features)
                or (p["LANES"] == p["WORKGROUP"] and d.subgroup_min <= p["LANES"] <= d.subgroup_max)
            ),
        ),
        Constraint(
            "a butterfly has a row for every lane, inside a subgroup",
            lambda p, d: p["REDUCE"] != "butterfly" or p["LANES"] <= min(p["ROWS"], d.subgroup_min),
        ),
        Constraint(
            "a hybrid reduction is over the whole workgroup",
            lambda p, d: p["REDUCE"] != "hybrid" or p["LANES"] == p["WORKGROUP"],
        ),
        ProblemConstraint(
            "every lane has work",
            lambda p, d, problem: p["LANES"] * p["VEC"] <= max(problem["K"], 32),
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(M=32, K=32, S=1),
        Problem(M=96, K=64, S=3),
        Problem(M=256, K=544, S=2),
    ),
    default_problems=(Problem(M=768, K=3072, S=1), Problem(M=4096, K=1024, S=1)),
    problem_rule=refuses_unpadded,
    matters=lambda precision, p: precision == F16 or p["UNPACK"] == "half",
)
