"""gemm_coop: gemm by the device's cooperative matrices, with float16 products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge.traits.choices import (
    ADDRESS,
    activation_bits,
    addressing,
    refuses_matrices,
)
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
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid, Times
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import BF16, F16, NF4, Q8, DType

TOLERANCE = 128.0
"""Weights and x lose what float16 cannot hold: a relative 2^-12 of each product, or 1.4 times that
where both do, and 4.5 times that for the worst of many sums. The tolerance of a sum of 64 products,
the shortest, is 2^-16."""

SUMS_PER_K = 8
"""K is at least so many times what ACC=f16 sums in float16. With n products in each such sum, the
result is off by some 2^-12.5 sqrt(n / 2) of its size (see gemm_half): 2^-14.5 sqrt(K) where n is
K / 8, a sixth of what is allowed near zero, which leaves room for the worst of many."""

_TILE = (("M", "BM"), ("T", "BT"), ("K", "BK"))
"""Dimensions, and how much of each a workgroup takes at a time."""


def _subgroups(p: Mapping[str, Any]) -> int:
    return int(p["BM"] // p["WM"] * (p["BT"] // p["WT"]) * p["SPLIT_K"])


def _matrix(p: Mapping[str, Any]) -> tuple[int, int, int]:
    m, n, k = (int(size) for size in p["SHAPE"].split("x"))
    return m, n, k


def _sums(p: Mapping[str, Any]) -> int:
    """Elements of one matrix of sums."""
    m, n, _ = _matrix(p)
    return m * n


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """Tiles of halves, a matrix of sums per subgroup, the levels of nf4, who arrived when."""
    tiles = p["STAGES"] * (p["BM"] + p["BT"]) * (p["BK"] + p["PAD"])
    return int(2 * tiles + 4 * (_subgroups(p) * _sums(p) + 17))


def _is_offered(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    return (*_matrix(p), "f16", "f16", "f32", "f32") in device.cooperative_shapes


def _sums_in(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    if p["ACC"] == "f32":
        return True
    return (*_matrix(p), "f16", "f16", "f16", "f16") in device.cooperative_shapes


def _divides_rows(p: Mapping[str, Any]) -> bool:
    return bool(p["WM"] % _matrix(p)[0] == 0 and p["BM"] % p["WM"] == 0)


def _divides_tokens(p: Mapping[str, Any]) -> bool:
    return bool(p["WT"] % _matrix(p)[1] == 0 and p["BT"] % p["WT"] == 0)


def _is_small(p: Mapping[str, Any]) -> bool:
    m, n, k = _matrix(p)
    sums = p["WM"] // m * (p["WT"] // n)
    loads = (p["BM"] + p["BT"]) * p["BK"] // 8 // (_subgroups(p) * p["SUBGROUP"])
    steps = p["BK"] // (k * p["SPLIT_K"])
    return bool(sums <= 4 and sums * steps <= 16 and loads <= (8 if p["PREFETCH"] else 64))


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
        workgroup=_subgroups(p) * p["SUBGROUP"],
        subgroup=p["SUBGROUP"],
        addressing=addressing(p),
        features=("cooperative_matrix", "float16"),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
        multiples=(tuple((dim, p[tile]) for dim, tile in _TILE) if p["EDGES"] == "aligned" else ()),
    )


def _only_where_it_matters(p: Mapping[str, Any]) -> bool:
    """Tests at the edges and the order of tiles do not matter where tiles are few."""
    if p["SPLIT_GRID"] == 1:
        return True
    return bool(p["SPLIT_K"] == 1 and p["GROUP"] == 0 and p["EDGES"] == "checked")


GEMM_COOP = KernelFamily(
    name="gemm_coop",
    template="gemm_coop.comp.j2",
    dims=PRODUCT_DIMS,
    precisions=(F16, BF16, Q8, NF4),
    space=Space(
        Choice(
            "SHAPE",
            ("8x8x8", "8x8x16", "8x16x16", "16x8x16", "16x16x16", "16x8x8"),
            default="16x16x16",
        ),
        Choice("SUBGROUP", (8, 16, 32, 64), default=32),
        Choice("BM", (32, 64, 128, 256), default=64),
        Choice("WM", (8, 16, 32, 64, 128), default=32),
        Choice("BT", (16, 32, 64, 128, 256), default=64),
        Choice("WT", (8, 16, 32, 64, 128), default=32),
        Choice("BK", (16, 32, 64), default=32),
        Choice("SPLIT_K", (1, 2, 4), default=1),
        Choice("STAGES", (1, 2), default=1),
        Choice("PAD", (0, 8), default=8),
        Choice("ACC", ("f32", "f16"), default="f32"),
        Flag("PREFETCH", default=True),
        Choice("GROUP", (0, 8), default=0),
        Choice("SPLIT_GRID", (1, 2, 4, 8), default=1),
        Choice("EDGES", ("checked", "aligned"), default="checked"),
        ADDRESS,
        *activation_bits("X", "Y"),
        Constraint("the device multiplies matrices of this shape", _is_offered),
        Constraint(
            "the device has subgroups of this size",
            lambda p, d: d.subgroup_min <= p["SUBGROUP"] <= d.subgroup_max,
        ),
        Constraint(
            "matrices divide a subgroup's rows, these the tile", lambda p, d: _divides_rows(p)
        ),
        Constraint(
            "matrices divide a subgroup's tokens, these the tile", lambda p, d: _divides_tokens(p)
        ),
        Constraint(
            "matrices divide a subgroup's part of K",
            lambda p, d: p["BK"] % (p["SPLIT_K"] * _matrix(p)[2]) == 0,
        ),
        Constraint("the device sums products of this shape in ACC", _sums_in),
        Constraint(
            "a second stage is filled from registers",
            lambda p, d: p["STAGES"] == 1 or p["PREFETCH"],
        ),
        Constraint(
            # They compile each matrix and each load of an invocation by itself, and for long.
            "software devices take four matrices per subgroup, and few loads per invocation",
            lambda p, d: d.device_type != "cpu" or _is_small(p),
        ),
        Constraint(
            # Fewer, and loading them from shared memory takes longer than multiplying them.
            "others at least four",
            lambda p, d: d.device_type == "cpu" or p["WM"] * p["WT"] >= 4 * _sums(p),
        ),
        Constraint(
            "a subgroup's tile is not narrow", lambda p, d: p["WM"] <= 4 * p["WT"] <= 16 * p["WM"]
        ),
        Constraint("one to sixteen subgroups", lambda p, d: 1 <= _subgroups(p) <= 16),
        Constraint(
            "invocations fit the device",
            lambda p, d: _subgroups(p) * p["SUBGROUP"] <= d.max_workgroup_invocations,
        ),
        Constraint(
            # More tiles would do as well there, and their sums need not meet.
            "only small tiles split K",
            lambda p, d: p["SPLIT_K"] == 1 or p["BM"] * p["BT"] <= 64 * 32,
        ),
        Constraint(
            "a parameter that changes nothing is not varied", lambda p, d: _only_where_it_matters(p)
        ),
        ProblemConstraint(
            "sums in halves are for a long K, whose tolerance is larger",
            lambda p, d, problem: (
                p["ACC"] == "f32" or problem["K"] >= SUMS_PER_K * (p["BK"] // p["SPLIT_K"])
            ),
        ),
        ProblemConstraint(
            "aligned tiles have no rest",
            lambda p, d, problem: (
                p["EDGES"] == "checked" or all(problem[dim] % p[tile] == 0 for dim, tile in _TILE)
            ),
        ),
        ProblemConstraint(
            "K is shared out where tiles are few and K is long",
            lambda p, d, problem: parts_help(p["SPLIT_GRID"], p["BM"], p["BT"], problem),
        ),
        Constraint(
            "accumulators fit the registers",
            lambda p, d: p["WM"] * p["WT"] <= 64 * p["SUBGROUP"],
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
        Problem(M=96, K=64, S=3, T=5, X=32, Y=32),
        Problem(M=160, K=544, S=2, T=37, X=16, Y=16),
        Problem(M=320, K=96, S=3, T=70, X=16, Y=32),
        Problem(M=64, K=96, S=1, T=9, X=32, Y=16),
        Problem(M=128, K=576, S=2, T=64, X=32, Y=32),
    ),
    default_problems=tuple(
        Problem(M=3072, K=768, S=1, T=256, X=x, Y=y)
        for x, y in ((16, 32), (16, 16), (32, 32), (32, 16))
    ),
    defaults={"S": 1, "X": 32, "Y": 32},
    tolerance=TOLERANCE,
    requires=("GL_KHR_cooperative_matrix",),
    problem_rule=refuses_matrices,
)
