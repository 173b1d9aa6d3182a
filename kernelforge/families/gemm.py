"""gemm: matrix times matrix with routed inputs; all of prefill's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint, Space
from kernelforge.traits.choices import (
    ADDRESS,
    WORD,
    activation_bits,
    addressing,
    refuses_matrices,
    word_features,
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
from kernelforge.weight_layouts import LAYOUT, TOGETHER
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid, Times
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, DType


def _rows(p: Mapping[str, Any]) -> int:
    """Rows of one workgroup."""
    return int(p["BM"] if p["FORM"] == "tile" else p["WORKGROUP"] * p["TM"])


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """Of both tiles, the 16 levels that nf4 keeps beside them, and who arrived when."""
    return int(4 * (p["BK"] * (p["BM"] + p["BT"] + 2 * p["PAD"]) + 17))


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    tiled = p["FORM"] == "tile"
    rows, tokens = _rows(p), p["BT"] if tiled else p["TT"]
    return Signature(
        bindings=(*product_bindings(precision, p), *parts_bindings(p["SPLIT_GRID"], rows, tokens)),
        push_constants=PRODUCT_CONSTANTS,
        grid=Grid(
            x=(CeilDiv("M", rows),),
            y=(CeilDiv("T", tokens),),
            z=(Times(p["SPLIT_GRID"]),) if p["SPLIT_GRID"] > 1 else (),
        ),
        workgroup=p["WORKGROUP"],
        subgroup=0 if tiled else p["WORKGROUP"],
        addressing=addressing(p),
        features=word_features(p) + (() if tiled else ("subgroup_shuffle",)),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
        multiples=(("M", rows), ("T", tokens)) if p["EDGES"] == "aligned" else (),
    )


_WIDE: dict[str, int | str] = {"VEC": 4, "PAD": 4, "PREFETCH": False, "STRIP": 0, "GROUP": 0}
"""What tiles of more than 32 rows alone vary, and its value elsewhere."""
_NARROW: dict[str, int | str] = {"UNPACK": "half"}
"""What those do not vary: integer operations are a way around slow conversions in software."""
_TILE: dict[str, int | str] = {"BM": 32, "BT": 32, "BK": 32, "SPLIT_GRID": 1, "EDGES": "checked"}
"""What tiles alone vary."""
_BROADCAST: dict[str, int | str] = {"SPREAD": "k", "WORD": 32}
"""What the other form alone varies: a tile's loads are few beside its products."""
_ALIGNED: dict[str, int | str] = {"VEC": 4, "PAD": 4, "UNPACK": "half", "BK": 32}
"""What tiles without bounds tests do not vary: the tests weigh most where loads are few."""
_SPLIT: dict[str, int | str] = {**_ALIGNED, "EDGES": "checked", "STRIP": 0, "GROUP": 0}
"""What does not matter where tiles are few and each is only part of the work."""


def _only_where_it_matters(p: Mapping[str, Any]) -> bool:
    # What is known first comes first: a parameter without a value yet ends the question.
    return (
        _has(p, _TILE, p["FORM"] == "broadcast")
        and _has(p, _WIDE, p["FORM"] == "broadcast" or p["BM"] <= 32)
        and _has(p, _NARROW, p["FORM"] == "tile" and p["BM"] > 32)
        and _has(p, _BROADCAST, p["FORM"] == "tile")
        and _has(p, _ALIGNED, p["EDGES"] == "aligned")
        and _has(p, _SPLIT, p["SPLIT_GRID"] > 1)
    )


def _has(p: Mapping[str, Any], fixed: Mapping[str, int | str], applies: bool) -> bool:
    return not applies or all(p[name] == value for name, value in fixed.items())


def _is_tiled_whole(p: Mapping[str, Any]) -> bool:
    if p["FORM"] == "broadcast":
        return True
    if p["BM"] % p["TM"] or p["BT"] % p["TT"]:
        return False
    return bool(p["WORKGROUP"] == (p["BM"] // p["TM"]) * (p["BT"] // p["TT"]))


def _fills_a_gpu(p: Mapping[str, Any]) -> bool:
    """Tiles of more than 32 rows are for machines with wide workgroups and many registers."""
    if p["FORM"] == "broadcast" or p["BM"] <= 32:
        return bool(p["BT"] <= 64)
    return bool(
        p["TM"] >= 4 and p["TT"] >= 4 and p["TM"] * p["TT"] >= 32
        and p["WORKGROUP"] >= 64 and p["BT"] >= 32
    )  # fmt: skip


def _most_sums(p: Mapping[str, Any], device: DeviceInfo) -> int:
    """Sums of one invocation: registers, and on software devices the time to compile.

    Checked access through descriptors doubles the code there, and the compile time more.
    """
    if not p["ADDRESS"] and device.device_type == "cpu":
        return 16
    return 128 if p["FORM"] == "broadcast" and p["ADDRESS"] else 64


GEMM = KernelFamily(
    name="gemm",
    template="gemm.comp.j2",
    dims=PRODUCT_DIMS,
    precisions=(F16, BF16, F32, Q8, NF4),
    space=Space(
        Choice(
            "FORM", ("tile", "broadcast"), default="tile", needs={"broadcast": "subgroup_shuffle"}
        ),
        Choice("EDGES", ("checked", "aligned"), default="checked"),
        Choice("SPLIT_GRID", (1, 2, 4, 8), default=1),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        Choice("BM", (16, 32, 64, 128), default=32),
        Choice("BT", (8, 16, 32, 64, 128), default=32),
        Choice("BK", (16, 32), default=32),
        Choice("TM", (1, 2, 4, 8), default=4),
        Choice("TT", (1, 2, 4, 8, 12, 16, 24, 32), default=4),
        Choice("VEC", (2, 4), default=4),
        Choice("PAD", (1, 4), default=4),
        Flag("PREFETCH"),
        Choice("STRIP", (0, 8), default=0),
        Choice("GROUP", (0, 8), default=0),
        Choice("UNPACK", ("half", "shift"), default="half"),
        Choice("SPREAD", ("k", "tokens"), default="k"),
        ADDRESS,
        WORD,
        *activation_bits("X", "Y"),
        LAYOUT,
        Constraint(
            "WORKGROUP is the number of invocations that a tile has",
            lambda p, d: _is_tiled_whole(p),
        ),
        Constraint(
            "software devices take small tiles",  # they gain nothing and compile them for long
            lambda p, d: d.device_type != "cpu" or p["BM"] <= 32,
        ),
        Constraint("the tile is of a size that is worth it", lambda p, d: _fills_a_gpu(p)),
        Constraint(
            "a parameter that changes nothing is not varied", lambda p, d: _only_where_it_matters(p)
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
            lambda p, d, problem: parts_help(p["SPLIT_GRID"], _rows(p), p["BT"], problem),
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
        Constraint(
            "every lane has as many tokens as the others",
            lambda p, d: p["SPREAD"] == "k" or p["TT"] % p["WORKGROUP"] == 0,
        ),
        Constraint("long words are read by address", lambda p, d: p["WORD"] == 32 or p["ADDRESS"]),
        Constraint(
            "rows that lie together are a workgroup's, and loaded whole",
            lambda p, d: (
                p["LAYOUT"] in ("rows", "gap")
                or (p["VEC"] == 4 and _rows(p) % TOGETHER[p["LAYOUT"]] == 0)
            ),
        ),
        Constraint(
            "strips divide a tile's rows",
            lambda p, d: p["STRIP"] == 0 or p["BM"] // p["TM"] % p["STRIP"] == 0,
        ),
        Constraint("16-bit rows are stored in pairs", lambda p, d: p["Y"] == 32 or p["TM"] >= 2),
        Constraint(
            "accumulators fit the registers", lambda p, d: p["TM"] * p["TT"] <= _most_sums(p, d)
        ),
        Constraint(
            "tiles fit the shared memory",
            lambda p, d: p["FORM"] != "tile" or _shared_bytes(p) <= d.max_shared_memory,
        ),
    ),
    signature=signature,
    inputs=product_inputs,
    oracle=product_oracle,
    cost=product_cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=64, S=3, T=5, X=32, Y=32),
        Problem(M=160, K=544, S=2, T=37, X=32, Y=32),
        Problem(M=32, K=1056, S=1, T=31, X=32, Y=32),
        Problem(M=544, K=32, S=1, T=33, X=32, Y=32),
        Problem(M=96, K=480, S=3, T=127, X=32, Y=32),
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
