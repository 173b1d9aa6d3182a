"""gemm_half: gemm by packed half arithmetic, for devices without cooperative matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge.traits.choices import ADDRESS, addressing, refuses_matrices
from kernelforge.traits.products import (
    PRODUCT_CONSTANTS,
    PRODUCT_DIMS,
    parts_bindings,
    parts_help,
    product_bindings,
    product_cost,
    product_inputs,
    product_oracle,
)
from kernelforge_runtime.abi.grid import CeilDiv, Grid, Times
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F16, DType

TOLERANCE = 128.0
"""As gemm_coop's. Each of n products that are summed in float16 before float32 takes over adds its
rounding error, some 2^-12.5 of the sum so far: for all K products together sqrt(n / 2) times that,
of the result's size, and 4.5 times that for the worst of many. Even n = 1 is beyond the tolerance
of sums in float32."""


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """Both tiles, two halves a word, and who arrived when."""
    return int(4 * (p["BK"] // 2 * (p["BM"] + p["BT"] + 2 * p["PAD"]) + 1))


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    split, rows, tokens = p["SPLIT_GRID"], p["BM"], p["BT"]
    return Signature(
        bindings=(*product_bindings(precision, p), *parts_bindings(split, rows, tokens)),
        push_constants=PRODUCT_CONSTANTS,
        grid=Grid(
            x=(CeilDiv("M", rows),),
            y=(CeilDiv("T", tokens),),
            z=(Times(split),) if split > 1 else (),
        ),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        features=("float16",),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
        multiples=(("M", rows), ("T", tokens)) if p["EDGES"] == "aligned" else (),
    )


def _refuses(problem: Problem) -> str | None:
    if problem["X"] != 16:
        return f"activations must have 16 bits, found X={problem['X']}"
    return refuses_matrices(problem)


def _is_tiled_whole(p: Mapping[str, Any]) -> bool:
    if p["BM"] % p["TM"] or p["BT"] % p["TT"]:
        return False
    return bool(p["WORKGROUP"] == (p["BM"] // p["TM"]) * (p["BT"] // p["TT"]))


def _only_where_it_matters(p: Mapping[str, Any]) -> bool:
    """What hides latency is for many registers; groups and whole tiles are for many tiles."""
    if p["BM"] <= 32 and (p["PREFETCH"] or p["GROUP"]):
        return False
    return bool(p["SPLIT_GRID"] == 1 or (p["EDGES"] == "checked" and p["GROUP"] == 0))


GEMM_HALF = KernelFamily(
    name="gemm_half",
    template="gemm_half.comp.j2",
    dims=PRODUCT_DIMS,
    precisions=(F16,),
    space=Space(
        Choice("EDGES", ("checked", "aligned"), default="checked"),
        Choice("SPLIT_GRID", (1, 2, 4, 8), default=1),
        Choice("WORKGROUP", (16, 32, 64, 128, 256), default=64),
        Choice("BM", (32, 64, 128), default=32),
        Choice("BT", (8, 16, 32, 64, 128), default=32),
        Choice("BK", (32,), default=32),
        Choice("TM", (2, 4, 8), default=4),
        Choice("TT", (2, 4, 8), default=4),
        Choice("FLUSH", (2, 4, 8), default=4),
        Choice("PAD", (1, 4), default=1),
        Flag("PREFETCH"),
        Choice("GROUP", (0, 8), default=0),
        ADDRESS,
        Choice("X", (16,), default=16),
        Choice("Y", (32, 16), default=32),
        ProblemConstraint(
            "compiled for these activations",
            lambda p, d, problem: p["X"] == problem["X"] and p["Y"] == problem["Y"],
        ),
        Constraint(
            "WORKGROUP is the number of invocations that a tile has",
            lambda p, d: _is_tiled_whole(p),
        ),
        Constraint(
            "software devices take small tiles",  # they gain nothing and compile them for long
            lambda p, d: d.device_type != "cpu" or (p["BM"] <= 32 and p["TM"] * p["TT"] <= 16),
        ),
        Constraint(
            "wide tiles are for wide workgroups and many sums",
            lambda p, d: p["BM"] == 32 or (p["TM"] * p["TT"] >= 32 and p["WORKGROUP"] >= 64),
        ),
        Constraint(
            "a parameter that changes nothing is not varied", lambda p, d: _only_where_it_matters(p)
        ),
        ProblemConstraint(
            "long sums in halves are for a long K, whose tolerance is larger",
            lambda p, d, problem: p["FLUSH"] < 8 or problem["K"] >= 512,
        ),
        ProblemConstraint(
            "aligned tiles have no rest",
            lambda p, d, problem: (
                p["EDGES"] == "checked"
                or (problem["M"] % p["BM"] == 0 and problem["T"] % p["BT"] == 0)
            ),
        ),
        ProblemConstraint(
            "K is shared out where tiles are few and K is long",
            lambda p, d, problem: parts_help(p["SPLIT_GRID"], p["BM"], p["BT"], problem),
        ),
        Constraint(
            "tiles fit the shared memory", lambda p, d: _shared_bytes(p) <= d.max_shared_memory
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
        Problem(M=544, K=96, S=1, T=32, X=16, Y=32),
        Problem(M=32, K=1056, S=1, T=31, X=16, Y=32),
        Problem(M=64, K=96, S=1, T=33, X=16, Y=16),
    ),
    default_problems=tuple(Problem(M=3072, K=768, S=1, T=256, X=16, Y=y) for y in (32, 16)),
    defaults={"S": 1, "X": 16, "Y": 32},
    tolerance=TOLERANCE,
    problem_rule=_refuses,
)
