"""Rows of weights times few vectors: the variants that gemv and norm_gemv have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kernelforge.space import Choice, Constraint, ProblemConstraint
from kernelforge.traits.choices import ADDRESS, WORD, activation_bits, word_features
from kernelforge.weight_layouts import LAYOUT, TOGETHER
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.dtypes import F16, NF4, Q8, QUANTIZED, DType

WINDOWS = Choice(
    "ADDRESS", (0, 1, 2), default=0, needs={1: "buffer_device_address", 2: "uniform_windows"}
)
"""By descriptors; by address; or that, and weights through windows of uniform buffers."""
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


def row_product_features(p: Mapping[str, Any]) -> set[str]:
    """Device features of the sums, and of the ways to make floats of weights."""
    features = set(word_features(p))
    if p["ADDRESS"] == 2:
        features.add("uniform_windows")
    shuffled = p["UNPACK"] in ("shuffle", "shuffle16") or p["SCALES"] == "handed"
    if p["REDUCE"] == "butterfly" or shuffled:
        features.add("subgroup_shuffle")  # of rows of one lane each, for x
    if p["REDUCE"] in ("subgroup", "hybrid"):
        whole = p["LANES"] == p["WORKGROUP"]
        features.add("subgroup_arithmetic" if whole else "subgroup_clustered")
    return features


def row_product_subgroup(p: Mapping[str, Any]) -> int:
    """The subgroup size that a variant requires; 0 for any."""
    alone = p["REDUCE"] == "subgroup" and p["LANES"] == p["WORKGROUP"]
    return int(p["WORKGROUP"]) if alone or p["LANES"] == 1 else 0


def row_product_grid(p: Mapping[str, Any]) -> Grid:
    """Workgroups: some rows each, and a pass over the weights for COLS tokens."""
    groups = p["WORKGROUP"] // p["LANES"]
    return Grid(x=(CeilDiv("M", groups * p["ROWS"]),), y=(CeilDiv("T", p["COLS"]),))


def matters(precision: DType, p: Mapping[str, Any]) -> bool:
    """Whether these parameters make a kernel of their own, and one that can be compiled."""
    elements = p["VEC"] * 32 // precision.bits
    # Of several columns the template takes eight elements at a time, in a loop of its own.
    at_once = elements if p["COLS"] == 1 else min(elements, 8)
    if p["LANES"] == 1:
        at_once = 16  # of a block of 32, but what is around the products is little
    if p["ROWS"] * p["COLS"] * p["UNROLL"] * at_once > MAX_PRODUCTS:
        return False
    if p["SCALES"] == "handed" and (precision not in QUANTIZED or p["LANES"] * elements % 64):
        return False  # lanes share whole words of scales
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


def _lanes_own_rows(p: Mapping[str, Any], device: DeviceInfo) -> bool:
    return bool(
        device.subgroup_min <= p["WORKGROUP"] <= min(device.subgroup_max, 32)
        and p["REDUCE"] == "butterfly"
        and p["INPUT"] == "direct"
        and p["SCALES"] == "own"
        and p["VEC"] == 4
        and p["UNROLL"] == 1
    )


def row_product_space(
    inputs: tuple[str, ...],
    rows: int,
    shared_floats: Callable[[Mapping[str, Any]], int] = lambda p: 0,
    own_rows: bool = False,
) -> tuple[Choice | Constraint | ProblemConstraint, ...]:
    """Choices and rules of templates that use lib/row_products.

    Args:
        inputs: values of INPUT, the default first.
        rows: default of ROWS.
        shared_floats: what a variant keeps in shared memory besides sums, levels and staged x.
        own_rows: the template has the form of lib/own_rows, for LANES = 1.
    """
    return (
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("LANES", (*((1,) if own_rows else ()), 4, 8, 16, 32, 64, 128, 256), default=32),
        Choice("ROWS", (1, 2, 4, 8, 16, 32), default=rows),
        # In this order, so that the default for a few tokens reads the weights once.
        Choice("COLS", (1, 8, 4, 2), default=1),
        Choice("VEC", (1, 2, 4), default=4),
        Choice("UNROLL", (1, 2, 4), default=1),
        Choice("REDUCE", ("subgroup", "butterfly", "hybrid", "shared"), default="hybrid"),
        Choice("INPUT", inputs, default=inputs[0]),
        Choice(
            "UNPACK",
            ("half", "shift", "shuffle", "shuffle16", "shared"),
            default="half",
            needs={"shuffle": "subgroup_shuffle", "shuffle16": "subgroup_shuffle"},
        ),
        Choice("SCALES", ("own", "handed"), default="own", needs={"handed": "subgroup_shuffle"}),
        WINDOWS if own_rows else ADDRESS,
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
                p["LANES"] in (1, p["WORKGROUP"])
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
                or p["LANES"] == 1  # whose sums are few anyway
            ),
        ),
        Constraint(
            # The butterfly of one lane exchanges nothing: of all reductions it is the one left.
            "lanes with rows of their own are one whole subgroup",
            lambda p, d: p["LANES"] > 1 or _lanes_own_rows(p, d),
        ),
        Constraint(
            # Of other lanes a subgroup's loads lie too far apart for one window.
            "windows show rows of lanes' own, which lie together",
            lambda p, d: (
                p["ADDRESS"] != 2
                or (
                    p["LANES"] == 1
                    and TOGETHER.get(p["LAYOUT"], 1) % p["WORKGROUP"] == 0
                    and "buffer_device_address" in d.features
                )
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
            "scales are handed round in one subgroup, for as many rows as lanes, of one token",
            lambda p, d: (
                p["SCALES"] == "own"
                or (
                    p["LANES"] == p["WORKGROUP"] <= min(p["ROWS"], d.subgroup_min)
                    and p["INPUT"] not in ("staged", "sparse")
                    and p["VEC"] == 4
                    and p["COLS"] == p["UNROLL"] == 1
                )
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
            lambda p, d: _shared_bytes(p) + 4 * shared_floats(p) <= d.max_shared_memory,
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
    )
