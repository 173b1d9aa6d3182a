"""gemv: matrix times few vectors with routed inputs; all of decode's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import (
    ADDRESS,
    WORD,
    activation_bits,
    activation_type,
    addressing,
    epilogue,
    random_route,
    refuses_matrices,
    stored,
    word_features,
)
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.weight_layouts import LAYOUT, TOGETHER, layout_name
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import (
    BF16,
    F16,
    F32,
    NF4,
    Q8,
    QUANTIZED,
    U32,
    DType,
    decode,
    encode,
)
from kernelforge_runtime.quantize import BLOCK, K_MULTIPLE, Quantized, dequantize, quantize

MAX_SUMS = 32
"""Sums that one invocation may keep; more than that is sure to spill."""
MAX_PRODUCTS = 256
"""Products written out in a loop's body: bounds the code, and the time to compile it."""
UNPACKS = {
    F16: ("half", "shift"),
    Q8: ("half", "shift"),
    NF4: ("half", "shuffle", "shuffle16", "shared"),
}
"""Ways to make floats of weights, by precision; the others need none."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    groups = p["WORKGROUP"] // p["LANES"]
    whole = p["LANES"] == p["WORKGROUP"]
    features = set(word_features(p))
    if p["REDUCE"] == "butterfly" or p["UNPACK"] in ("shuffle", "shuffle16"):
        features.add("subgroup_shuffle")
    if p["REDUCE"] in ("subgroup", "hybrid"):
        features.add("subgroup_arithmetic" if whole else "subgroup_clustered")
    scale = (Binding("scale", U32, ("M", f"K/{K_MULTIPLE}")),) if precision in QUANTIZED else ()
    return Signature(
        bindings=(
            Binding("weight", precision, ("M", "K"), layout=layout_name(p["LAYOUT"], precision)),
            *scale,
            Binding("in_x", activation_type(p, "X"), ("S", "T", "K")),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("aux", F32, ("M",)),
            Binding("out_y", activation_type(p, "Y"), ("T", "M"), "readwrite"),
        ),
        push_constants=(PushConstant("M"), PushConstant("K"), PushConstant("T")),
        grid=Grid(x=(CeilDiv("M", groups * p["ROWS"]),), y=(CeilDiv("T", p["COLS"]),)),
        workgroup=p["WORKGROUP"],
        subgroup=p["WORKGROUP"] if p["REDUCE"] == "subgroup" and whole else 0,
        addressing=addressing(p),
        features=tuple(sorted(features)),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs of T tokens, a random route per 32 rows."""
    m, k, s, t = (problem[d] for d in "MKST")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    weight = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return {
        **encoded(weight, precision),
        "in_x": rng.standard_normal((s, t, k), dtype=np.float32).astype(x_type.np),
        "route": random_route(m, t, s, t * k, k, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal((t, m), dtype=np.float32).astype(y_type.np),
    }


def encoded(weight: NDArray[np.float32], precision: DType) -> Arrays:
    """The bindings that hold these weights [M, K]; half a word may be spare."""
    if precision not in QUANTIZED:
        return {"weight": encode(weight, precision)}
    k = weight.shape[1]
    whole = quantize(np.pad(weight, ((0, 0), (0, -k % K_MULTIPLE))), precision)
    words = np.ascontiguousarray(whole.weight[:, : k * precision.bits // 32])
    return {"weight": words, "scale": whole.scale}


def decoded(given: Mapping[str, NDArray[Any]], precision: DType) -> NDArray[np.float32]:
    """The weights [M, K] that these bindings hold."""
    weight = given["weight"]
    if precision not in QUANTIZED:
        return decode(weight, precision)
    block = BLOCK * precision.bits // 32
    spare = 2 * block * given["scale"].shape[1] - weight.shape[1]
    whole = Quantized(np.pad(weight, ((0, 0), (0, spare))), given["scale"])
    return dequantize(whole, precision)[:, : weight.shape[1] // block * BLOCK]


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The product in float64, block by block, with each block's epilogue."""
    t, k = problem["T"], problem["K"]
    weight, x = decoded(given, precision), given["in_x"].reshape(-1)
    out = given["out_y"].astype(np.float64).reshape(t, -1)
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        starts = int(way[0]) + np.arange(t) * int(way[1])
        x_block = x[starts[:, None] + np.arange(k)].astype(np.float64)
        value = x_block @ weight[rows].astype(np.float64).T
        out[:, rows] = epilogue(way, value, out[:, rows], given["aux"])
    return {"out_y": stored(out, activation_type(problem, "Y"))}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every operand once, scales included."""
    m, k, s, t, x, y = (problem[d] for d in "MKSTXY")
    scales = 32 * -(-k // K_MULTIPLE) if precision in QUANTIZED else 0
    weights = m * (k * precision.bits + scales)
    return 2.0 * m * k * t, (weights + t * (k * s * x + 2 * m * y)) / 8


def _matters(precision: DType, p: Mapping[str, Any]) -> bool:
    elements = p["VEC"] * 32 // precision.bits
    # Of several columns the template takes eight elements at a time, in a loop of its own.
    at_once = elements if p["COLS"] == 1 else min(elements, 8)
    if p["ROWS"] * p["COLS"] * p["UNROLL"] * at_once > MAX_PRODUCTS:
        return False
    return p["UNPACK"] in UNPACKS.get(precision, ("half",))


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """Shared memory of a workgroup, at most: partial sums, levels of nf4, staged x."""
    partial = p["WORKGROUP"] * p["ROWS"] * p["COLS"] if p["REDUCE"] in ("hybrid", "shared") else 0
    levels = 16 if p["UNPACK"] == "shared" else 0
    # A load has up to eight elements per word; see the template's tile_loads.
    staged = max(1024, p["LANES"] * p["VEC"] * 8 * p["COLS"]) if p["INPUT"] == "staged" else 0
    return int(4 * (partial + levels + staged))


def _loop_fits(p: Mapping[str, Any]) -> bool:
    if p["UNROLL"] > 1 and (p["VEC"] < 4 or p["ROWS"] * p["COLS"] > 4):
        return False  # where sums are many, so is other work while a load is under way
    if p["COLS"] > 1 and p["VEC"] == 2:
        return False  # x moves more than weights do: only the extremes differ
    if p["LANES"] > 64 and p["ROWS"] > 8:
        return False  # no workgroup is left for the other cores
    return bool(p["ROWS"] * p["COLS"] <= MAX_SUMS)


def _layout_helps(p: Mapping[str, Any]) -> bool:
    rows = p["WORKGROUP"] // p["LANES"] * p["ROWS"]
    if p["LAYOUT"] == "gap":
        return bool(rows > 1 and p["VEC"] == 4)
    # Sparse inputs are the reason of short loads, and want their weights no less.
    whole = p["VEC"] == 4 or p["INPUT"] == "sparse"
    return bool(p["LAYOUT"] == "rows" or (whole and rows % TOGETHER[p["LAYOUT"]] == 0))


GEMV = KernelFamily(
    name="gemv",
    template="gemv.comp.j2",
    dims=("M", "K", "S", "T", "X", "Y"),
    precisions=(F16, BF16, F32, Q8, NF4),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("LANES", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("ROWS", (1, 2, 4, 8, 16, 32), default=2),
        # In this order, so that the default for a few tokens reads the weights once.
        Choice("COLS", (1, 8, 4, 2), default=1),
        Choice("VEC", (1, 2, 4), default=4),
        Choice("UNROLL", (1, 2, 4), default=1),
        Choice("REDUCE", ("subgroup", "butterfly", "hybrid", "shared"), default="hybrid"),
        Choice("INPUT", ("direct", "staged", "sparse"), default="direct"),
        Choice(
            "UNPACK",
            ("half", "shift", "shuffle", "shuffle16", "shared"),
            default="half",
            needs={"shuffle": "subgroup_shuffle", "shuffle16": "subgroup_shuffle"},
        ),
        ADDRESS,
        WORD,
        *activation_bits("X", "Y"),
        LAYOUT,
        Constraint("lanes divide the workgroup", lambda p, d: p["LANES"] <= p["WORKGROUP"]),
        Constraint(
            "a workgroup's rows stay in one route block",
            lambda p, d: p["WORKGROUP"] // p["LANES"] * p["ROWS"] <= ROUTE_ROWS,
        ),
        Constraint(
            # More of them share nothing but the launch.
            "a workgroup has at most four groups, and one that is wider than a subgroup",
            lambda p, d: (
                p["WORKGROUP"] == p["LANES"]
                or (
                    p["WORKGROUP"] <= 4 * p["LANES"]
                    and (p["LANES"] <= d.subgroup_min or "subgroup_arithmetic" not in d.features)
                )
            ),
        ),
        Constraint(
            # With fewer, there is as little to gain as with bounds checks between them.
            "long words are for loads of four words, by address",
            lambda p, d: p["WORD"] == 32 or (p["VEC"] == 4 and p["ADDRESS"]),
        ),
        Constraint("sums fit the registers, and loads help each other", lambda p, d: _loop_fits(p)),
        Constraint(
            "a subgroup reduction stays inside a subgroup",
            lambda p, d: (
                p["REDUCE"] != "subgroup"
                or (p["LANES"] <= d.subgroup_min and "subgroup_clustered" in d.features)
                or (p["LANES"] == p["WORKGROUP"] and d.subgroup_min <= p["LANES"] <= d.subgroup_max)
            ),
        ),
        Constraint(
            "a butterfly has a sum for every lane, inside a subgroup",
            lambda p, d: (
                p["REDUCE"] != "butterfly"
                or p["LANES"] <= min(p["ROWS"] * p["COLS"], d.subgroup_min)
            ),
        ),
        Constraint(
            "a hybrid reduction is over a whole workgroup of several subgroups",
            lambda p, d: p["REDUCE"] != "hybrid" or d.subgroup_min < p["LANES"] == p["WORKGROUP"],
        ),
        Constraint(
            "shared memory alone is for what subgroups cannot sum, and for few small sums",
            lambda p, d: (
                p["REDUCE"] != "shared"
                or "subgroup_arithmetic" not in d.features
                or (p["LANES"] <= d.subgroup_min and p["COLS"] == 1)
            ),
        ),
        Constraint(
            # Each store brings the whole epilogue with it: slow to compile where there are many.
            "a subgroup's lanes store four sums each at most",
            lambda p, d: (
                p["REDUCE"] not in ("subgroup", "butterfly")
                or p["ROWS"] * p["COLS"] <= 4 * p["LANES"]
            ),
        ),
        Constraint(
            # Staging costs two barriers per tile, which only many readers of few rows repay.
            "staged inputs are read by four groups with few rows",
            lambda p, d: (
                p["INPUT"] != "staged"
                or (
                    p["WORKGROUP"] == 4 * p["LANES"]
                    and p["ROWS"] <= 4
                    and p["VEC"] == 4
                    and p["UNROLL"] == 1
                )
            ),
        ),
        Constraint(
            # Long loads are rarely all zero, nor are the x of several tokens; few rows save little.
            "sparse inputs are looked at in short loads, for many rows",
            lambda p, d: (
                p["INPUT"] != "sparse"
                or (p["VEC"] <= 2 and p["ROWS"] >= 4 and p["COLS"] == 1 and p["UNROLL"] == 1)
            ),
        ),
        Constraint(
            "lanes that hand out levels are all there",
            lambda p, d: (
                p["UNPACK"] not in ("shuffle", "shuffle16")
                or (
                    p["INPUT"] == "direct"
                    and min(p["WORKGROUP"], d.subgroup_min)
                    >= (8 if p["UNPACK"] == "shuffle" else 16)
                )
            ),
        ),
        Constraint(
            "two shuffles are for subgroups that hold no sixteen levels",
            lambda p, d: p["UNPACK"] != "shuffle" or min(p["WORKGROUP"], d.subgroup_min) < 16,
        ),
        Constraint(
            "partial sums and staged inputs fit the shared memory",
            lambda p, d: _shared_bytes(p) <= d.max_shared_memory,
        ),
        Constraint(
            "16-bit rows are stored in pairs",
            lambda p, d: (
                p["Y"] == 32
                or (
                    p["ROWS"] >= 2
                    and (p["REDUCE"] != "butterfly" or p["ROWS"] * p["COLS"] >= 2 * p["LANES"])
                )
            ),
        ),
        Constraint(
            "a layout is for rows that a workgroup reads together, in whole loads",
            lambda p, d: _layout_helps(p),
        ),
        ProblemConstraint(
            "every lane has work",
            lambda p, d, problem: p["LANES"] * p["VEC"] * p["UNROLL"] <= max(problem["K"], 32),
        ),
        ProblemConstraint(
            "one or two passes over the weights, no column without a token to share with",
            lambda p, d, problem: (
                p["COLS"] < 2 * problem["T"] and (p["COLS"] == 8 or 2 * p["COLS"] >= problem["T"])
            ),
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=160, S=3, T=1, X=16, Y=16),
        Problem(M=160, K=448, S=2, T=3, X=32, Y=16),
        Problem(M=224, K=352, S=1, T=5, X=16, Y=32),
        Problem(M=32, K=2080, S=1, T=1, X=32, Y=32),
        Problem(M=992, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=992, S=3, T=7, X=32, Y=32),
        Problem(M=160, K=1056, S=2, T=2, X=32, Y=32),
        Problem(M=64, K=832, S=2, T=8, X=32, Y=32),
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
    matters=_matters,
)
