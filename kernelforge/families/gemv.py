"""gemv: matrix times vector with routed inputs; all of decode's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import (
    ADDRESS,
    activation_bits,
    activation_type,
    addressing,
    epilogue,
    random_route,
    refuses_matrices,
    stored,
)
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
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
            Binding("in_x", activation_type(p, "X"), ("S", "K")),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("aux", F32, ("M",)),
            Binding("out_y", activation_type(p, "Y"), ("M",), "readwrite"),
        ),
        push_constants=(PushConstant("K"),),
        grid=Grid(x=(CeilDiv("M", groups * p["ROWS"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if p["REDUCE"] == "subgroup" and whole else 0,
        addressing=addressing(p),
        features=features,
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs, and a random route for every 32 rows."""
    m, k, s = (problem[d] for d in "MKS")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    weight = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return {
        "weight": encode(weight, precision),
        "in_x": rng.standard_normal((s, k), dtype=np.float32).astype(x_type.np),
        "route": random_route(m, 1, s, k, k, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal(m, dtype=np.float32).astype(y_type.np),
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
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        value = weight[rows].astype(np.float64) @ x[way[0] : way[0] + k].astype(np.float64)
        out[rows] = epilogue(way, value[None], out[None, rows], given["aux"])[0]
    return {"out_y": stored(out, activation_type(problem, "Y"))}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every weight is read once."""
    m, k, s, x, y = (problem[d] for d in "MKSXY")
    return 2.0 * m * k, (m * k * precision.bits + k * s * x + 2 * m * y) / 8


GEMV = KernelFamily(
    name="gemv",
    template="gemv.comp.j2",
    dims=("M", "K", "S", "X", "Y"),
    precisions=(F16, BF16, F32),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("LANES", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("ROWS", (1, 2, 4, 8, 16, 32), default=2),
        Choice("VEC", (1, 2, 4), default=4),
        Choice("REDUCE", ("subgroup", "butterfly", "hybrid", "shared"), default="hybrid"),
        Choice("UNPACK", ("half", "shift"), default="half"),
        ADDRESS,
        *activation_bits("X", "Y"),
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
        Constraint(
            "16-bit rows are stored in pairs",
            lambda p, d: (
                p["Y"] == 32 or p["ROWS"] >= (2 * p["LANES"] if p["REDUCE"] == "butterfly" else 2)
            ),
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
        Problem(M=32, K=32, S=1, X=32, Y=32),
        Problem(M=96, K=64, S=3, X=32, Y=32),
        Problem(M=256, K=544, S=2, X=32, Y=32),
        Problem(M=256, K=544, S=2, X=16, Y=16),
        Problem(M=96, K=64, S=3, X=16, Y=32),
        Problem(M=64, K=96, S=1, X=32, Y=16),
    ),
    default_problems=(
        Problem(M=768, K=3072, S=1, X=32, Y=32),
        Problem(M=4096, K=1024, S=1, X=32, Y=32),
        Problem(M=768, K=3072, S=1, X=16, Y=32),
        Problem(M=768, K=3072, S=1, X=32, Y=16),
        Problem(M=768, K=3072, S=1, X=16, Y=16),
    ),
    defaults={"S": 1, "X": 32, "Y": 32},
    problem_rule=refuses_matrices,
    matters=lambda precision, p: precision == F16 or p["UNPACK"] == "half",
)
