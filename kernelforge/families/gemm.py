"""gemm: matrix times matrix with routed inputs; all of prefill's matrix products."""

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
from kernelforge.space import Choice, Constraint, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, U32, DType, decode, encode


def _rows(p: Mapping[str, Any]) -> int:
    """Rows of one workgroup."""
    return int(p["BM"] if p["FORM"] == "tile" else p["WORKGROUP"] * p["TM"])


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    tiled = p["FORM"] == "tile"
    return Signature(
        bindings=(
            Binding("weight", precision, ("M", "K")),
            Binding("in_x", activation_type(p, "X"), ("S", "T", "K")),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("aux", F32, ("M",)),
            Binding("out_y", activation_type(p, "Y"), ("T", "M"), "readwrite"),
        ),
        push_constants=(PushConstant("M"), PushConstant("K"), PushConstant("T")),
        grid=Grid(x=(CeilDiv("M", _rows(p)),), y=(CeilDiv("T", p["BT"] if tiled else p["TT"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=0 if tiled else p["WORKGROUP"],
        addressing=addressing(p),
        features=() if tiled else ("subgroup_shuffle",),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs of T tokens, a random route per 32 rows."""
    m, k, s, t = (problem[d] for d in "MKST")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    weight = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return {
        "weight": encode(weight, precision),
        "in_x": rng.standard_normal((s, t, k), dtype=np.float32).astype(x_type.np),
        "route": random_route(m, t, s, t * k, k, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal((t, m), dtype=np.float32).astype(y_type.np),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The product in float64, block by block, with each block's epilogue."""
    t, k = problem["T"], problem["K"]
    weight, x = decode(given["weight"], precision), given["in_x"].reshape(-1)
    out = given["out_y"].astype(np.float64)
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        starts = int(way[0]) + np.arange(t) * int(way[1])
        x_block = x[starts[:, None] + np.arange(k)].astype(np.float64)
        value = x_block @ weight[rows].astype(np.float64).T
        out[:, rows] = epilogue(way, value, out[:, rows], given["aux"])
    return {"out_y": stored(out, activation_type(problem, "Y"))}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every operand once."""
    m, k, s, t, x, y = (problem[d] for d in "MKSTXY")
    return 2.0 * m * k * t, (m * k * precision.bits + t * (k * s * x + 2 * m * y)) / 8


def _shape_holds(p: Mapping[str, Any]) -> bool:
    if p["FORM"] == "tile":
        return bool(p["WORKGROUP"] == (p["BM"] // p["TM"]) * (p["BT"] // p["TT"]))
    # The tile's own parameters mean nothing here: keep one value of each.
    return bool(p["BM"] == 32 and p["BT"] == 32 and p["BK"] == 32)


GEMM = KernelFamily(
    name="gemm",
    template="gemm.comp.j2",
    dims=("M", "K", "S", "T", "X", "Y"),
    precisions=(F16, BF16, F32),
    space=Space(
        Choice(
            "FORM", ("tile", "broadcast"), default="tile", needs={"broadcast": "subgroup_shuffle"}
        ),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        Choice("BM", (16, 32), default=32),
        Choice("BT", (8, 16, 32, 64), default=32),
        Choice("BK", (16, 32), default=32),
        Choice("TM", (1, 2, 4), default=4),
        Choice("TT", (1, 2, 4, 8, 12, 16, 24, 32), default=4),
        Choice("UNPACK", ("half", "shift"), default="half"),
        ADDRESS,
        *activation_bits("X", "Y"),
        Constraint("the form's shape holds", lambda p, d: _shape_holds(p)),
        Constraint(
            "BT is a multiple of TT", lambda p, d: p["FORM"] != "tile" or p["BT"] % p["TT"] == 0
        ),
        Constraint(
            "one subgroup, rows within one route block",
            lambda p, d: (
                p["FORM"] == "tile"
                or (
                    d.subgroup_min <= p["WORKGROUP"] <= d.subgroup_max
                    and p["WORKGROUP"] >= 8
                    and p["WORKGROUP"] * p["TM"] <= ROUTE_ROWS
                )
            ),
        ),
        Constraint("16-bit rows are stored in pairs", lambda p, d: p["Y"] == 32 or p["TM"] >= 2),
        Constraint(
            "accumulators fit the registers",
            # Checked access through descriptors doubles the code, and the compile time more.
            lambda p, d: p["TM"] * p["TT"] <= (64 if p["ADDRESS"] else 32),
        ),
        Constraint(
            "tiles fit the shared memory",
            lambda p, d: (
                p["FORM"] != "tile"
                or 4 * (p["BM"] + p["BT"]) * (p["BK"] + 1) <= d.max_shared_memory
            ),
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=64, S=3, T=5, X=32, Y=32),
        Problem(M=160, K=544, S=2, T=37, X=32, Y=32),
        Problem(M=160, K=544, S=2, T=37, X=16, Y=16),
        Problem(M=96, K=64, S=3, T=5, X=16, Y=32),
        Problem(M=64, K=96, S=1, T=9, X=32, Y=16),
    ),
    default_problems=tuple(
        Problem(M=3072, K=768, S=1, T=256, X=x, Y=y)
        for x, y in ((32, 32), (16, 32), (32, 16), (16, 16))
    ),
    defaults={"S": 1, "X": 32, "Y": 32},
    problem_rule=refuses_matrices,
    matters=lambda precision, p: precision == F16 or p["UNPACK"] == "half",
)
