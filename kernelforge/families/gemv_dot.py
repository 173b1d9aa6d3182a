"""gemv_dot: q8 weights times inputs rounded to int8, in whole numbers; a rival of gemv.

Another result than gemv's, by the rounding of its inputs, so that it runs only where it is asked
for. Exact against its own oracle, which rounds in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.traits.choices import (
    ADDRESS,
    activation_bits,
    activation_type,
    addressing,
    epilogue,
    refuses_matrices,
    stored,
)
from kernelforge.traits.products import (
    PRODUCT_CONSTANTS,
    PRODUCT_DIMS,
    product_bindings,
    product_cost,
    product_inputs,
)
from kernelforge.weight_layouts import LAYOUT, TOGETHER
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import Q8, DType
from kernelforge_runtime.int8_blocks import round_blocks
from kernelforge_runtime.quantize import BLOCK

MAX_SUMS = 32
"""Sums that one invocation may keep; more than that is sure to spill."""
MAX_DOTS = 64
"""Dot products written out in a loop's body: bounds the code, and the time to compile it."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    groups = p["WORKGROUP"] // p["LANES"]
    whole = p["LANES"] == p["WORKGROUP"]
    features: set[str] = set()
    if p["DOT"] != "plain":
        features.add("integer_dot")
    if p["ROUND"] == "shuffle":
        features.add("subgroup_shuffle")
    if p["REDUCE"] != "shared":
        features.add("subgroup_arithmetic" if whole else "subgroup_clustered")
    return Signature(
        bindings=product_bindings(precision, p),
        push_constants=PRODUCT_CONSTANTS,
        grid=Grid(x=(CeilDiv("M", groups * p["ROWS"]),), y=(CeilDiv("T", p["COLS"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if p["REDUCE"] == "subgroup" and whole else 0,
        addressing=addressing(p),
        features=tuple(sorted(features)),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Whole numbers within a block, float64 between blocks, with each route block's epilogue."""
    m, t, k = problem["M"], problem["T"], problem["K"]
    words = np.ascontiguousarray(given["weight"]).reshape(m, -1)
    weight = (words.view(np.uint8) ^ np.uint8(0x80)).view(np.int8).reshape(m, -1, BLOCK)
    scales = np.ascontiguousarray(given["scale"]).view(np.float16).reshape(m, -1)
    scale = scales[:, : k // BLOCK].astype(np.float64)
    x = given["in_x"].reshape(-1)
    out = given["out_y"].astype(np.float64).reshape(t, -1)
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        starts = int(way[0]) + np.arange(t) * int(way[1])
        q, step = round_blocks(x[starts[:, None] + np.arange(k)])
        sums = np.einsum(
            "tbi,mbi->tmb", q.reshape(t, -1, BLOCK).astype(np.int32), weight[rows].astype(np.int32)
        )
        value = np.einsum("tmb,mb,tb->tm", sums.astype(np.float64), scale[rows], step)
        out[:, rows] = epilogue(way, value, out[:, rows], given["aux"])
    return {"out_y": stored(out, activation_type(problem, "Y"))}


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """Shared memory of a workgroup, at most: rounded inputs with their steps, partial sums."""
    per_lane = max(256, p["COLS"] * p["LANES"] * p["VEC"] // 8)  # as the template's `tile`
    return int(4 * (9 * per_lane + p["WORKGROUP"] * p["ROWS"] * p["COLS"]))


def _layout_helps(p: Mapping[str, Any]) -> bool:
    rows = p["WORKGROUP"] // p["LANES"] * p["ROWS"]
    if p["LAYOUT"] == "gap":
        return bool(rows > 1 and p["VEC"] == 4)
    return bool(p["LAYOUT"] == "rows" or (p["VEC"] == 4 and rows % TOGETHER[p["LAYOUT"]] == 0))


GEMV_DOT = KernelFamily(
    name="gemv_dot",
    template="gemv_dot.comp.j2",
    dims=PRODUCT_DIMS,
    precisions=(Q8,),
    space=Space(
        Choice("WORKGROUP", (8, 16, 32, 64, 128, 256), default=64),
        Choice("LANES", (4, 8, 16, 32, 64), default=16),
        Choice("ROWS", (1, 2, 4, 8, 16), default=4),
        # In this order, so that the default for a few tokens reads the weights once.
        Choice("COLS", (1, 8, 4, 2), default=1),
        Choice("VEC", (1, 2, 4), default=4),
        Choice(
            "DOT",
            ("plain", "packed", "saturating"),
            default="plain",
            needs={"packed": "integer_dot", "saturating": "integer_dot"},
        ),
        Choice("ROUND", ("lane", "shuffle"), default="lane", needs={"shuffle": "subgroup_shuffle"}),
        Choice("REDUCE", ("subgroup", "hybrid", "shared"), default="shared"),
        ADDRESS,
        *activation_bits("X", "Y"),
        LAYOUT,
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint(
            "a workgroup's rows stay in one route block, and are four at least to share rounding",
            lambda p, d: 4 <= p["WORKGROUP"] // p["LANES"] * p["ROWS"] <= ROUTE_ROWS,
        ),
        Constraint(
            "sums fit the registers",
            lambda p, d: (
                p["ROWS"] * p["COLS"] <= MAX_SUMS and p["ROWS"] * p["COLS"] * p["VEC"] <= MAX_DOTS
            ),
        ),
        Constraint(
            "a block of x is rounded inside a subgroup",
            lambda p, d: p["ROUND"] == "lane" or min(d.subgroup_min, p["WORKGROUP"]) >= 8,
        ),
        Constraint(
            "a subgroup reduction stays inside a subgroup",
            lambda p, d: (
                p["REDUCE"] != "subgroup"
                or (p["LANES"] <= d.subgroup_min and "subgroup_clustered" in d.features)
                or (
                    p["LANES"] == p["WORKGROUP"]
                    and d.subgroup_min <= p["LANES"] <= d.subgroup_max
                    and "subgroup_arithmetic" in d.features
                )
            ),
        ),
        Constraint(
            "a hybrid reduction is over a whole workgroup of several subgroups",
            lambda p, d: (
                p["REDUCE"] != "hybrid"
                or (
                    d.subgroup_min < p["LANES"] == p["WORKGROUP"]
                    and "subgroup_arithmetic" in d.features
                )
            ),
        ),
        Constraint(
            "rounded inputs and partial sums fit the shared memory",
            lambda p, d: _shared_bytes(p) <= d.max_shared_memory,
        ),
        Constraint("16-bit rows are stored in pairs", lambda p, d: p["Y"] == 32 or p["ROWS"] >= 2),
        Constraint(
            "a layout is for rows that a workgroup reads together, in whole loads",
            lambda p, d: _layout_helps(p),
        ),
        ProblemConstraint(
            "every lane has work",
            lambda p, d, problem: p["LANES"] * p["VEC"] <= max(problem["K"], 32),
        ),
        ProblemConstraint(
            "one or two passes over the weights, no column without a token to share with",
            lambda p, d, problem: (
                p["COLS"] < 2 * problem["T"] and (p["COLS"] == 8 or 2 * p["COLS"] >= problem["T"])
            ),
        ),
    ),
    signature=signature,
    inputs=product_inputs,
    oracle=oracle,
    cost=product_cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=160, S=3, T=1, X=16, Y=16),
        Problem(M=160, K=448, S=2, T=3, X=32, Y=16),
        Problem(M=224, K=352, S=1, T=5, X=16, Y=32),
        Problem(M=32, K=2080, S=1, T=1, X=32, Y=32),
        Problem(M=32, K=8224, S=1, T=1, X=32, Y=32),
        Problem(M=992, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=992, S=3, T=7, X=32, Y=32),
        Problem(M=64, K=1056, S=2, T=8, X=32, Y=32),
    ),
    default_problems=(
        *(
            Problem(M=768, K=3072, S=1, T=t, X=x, Y=y)
            for t in (1, 4)
            for x, y in ((32, 32), (16, 32), (32, 16), (16, 16))
        ),
        Problem(M=4096, K=1024, S=1, T=1, X=32, Y=32),
    ),
    defaults={"S": 1, "T": 1, "X": 32, "Y": 32},
    problem_rule=refuses_matrices,
)
