"""norm_gemv: layer norm and token shift inside decode's routed matrix products, in one dispatch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge.traits.choices import (
    activation_type,
    addressing,
    epilogue,
    random_route,
    refuses_matrices,
    stored,
)
from kernelforge.traits.matrices import random_weight, weight_bindings, weight_bits, weight_values
from kernelforge.traits.row_products import (
    matters,
    row_product_features,
    row_product_grid,
    row_product_space,
    row_product_subgroup,
)
from kernelforge.traits.segments import decode_segments
from kernelforge.weight_layouts import layout_name
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, U32, DType, encode


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    features = row_product_features(p)
    if p["REDUCE"] in ("subgroup", "hybrid"):
        features.add("subgroup_arithmetic")  # of the norm's sums, over the whole workgroup
    return Signature(
        bindings=(
            *weight_bindings(precision, layout_name(p["LAYOUT"], precision)),
            Binding("in_x", activation_type(p, "X"), ("T", "K")),
            Binding("norm_scale", F32, ("K",)),
            Binding("norm_bias", F32, ("K",)),
            Binding("carry", F32, ("T", "K")),
            Binding("mix_by", F32, ("S", "K")),
            Binding("segment", U32, ("T", 4)),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("aux", F32, ("M",)),
            Binding("out_y", activation_type(p, "Y"), ("T", "M"), "readwrite"),
            Binding("next_carry", F32, ("T", "K"), "readwrite"),
        ),
        push_constants=(*(PushConstant(n) for n in "MKT"), PushConstant("eps", F32)),
        grid=row_product_grid(p),
        workgroup=p["WORKGROUP"],
        subgroup=row_product_subgroup(p),
        addressing=addressing(p),
        features=tuple(sorted(features)),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """A residual stream with a mean far from zero, mixes in 0 to 1, a random route per 32 rows."""
    m, k, s, t = (problem[d] for d in "MKST")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    return {
        **random_weight(m, k, precision, rng),
        "in_x": encode(rng.standard_normal((t, k), dtype=np.float32) * 3 + 1, x_type),
        "norm_scale": 1 + 0.1 * rng.standard_normal(k, dtype=np.float32),
        "norm_bias": rng.standard_normal(k, dtype=np.float32),
        "carry": rng.standard_normal((t, k), dtype=np.float32),
        "mix_by": rng.random((s, k), dtype=np.float32),
        "segment": decode_segments(t, rng),
        "route": random_route(m, t, s, k, 0, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal((t, m), dtype=np.float32).astype(y_type.np),
        "next_carry": rng.standard_normal((t, k), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Biased variance, the mixes, then the product, block by block; float64. Padding stays."""
    k = problem["K"]
    weight = weight_values(given, precision).astype(np.float64)
    _, count, slot, _ = given["segment"].T
    alive = count > 0
    slot = slot[alive]
    x = given["in_x"][alive].astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + constants["eps"])
    normed = normed * given["norm_scale"] + given["norm_bias"]
    delta = given["carry"][slot] - normed
    mixes = given["mix_by"].reshape(-1).astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        value = np.zeros((len(alive), ROUTE_ROWS))
        value[alive] = (normed + delta * mixes[way[0] : way[0] + k]) @ weight[rows].T
        made = epilogue(way, value, out[:, rows], given["aux"])
        out[:, rows] = np.where(alive[:, None], made, out[:, rows])
    carry = given["next_carry"].astype(np.float64)
    carry[slot] = normed
    return {"out_y": stored(out, activation_type(problem, "Y")), "next_carry": carry}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): the weights, the norm, S mixes, x, both carries and y once."""
    m, k, s, t, x, y = (problem[d] for d in "MKSTXY")
    norm = (8.0 + 3 * s) * t * k
    vectors = 32 * k * (2 + s + 2 * t) + t * (k * x + 2 * m * y)
    return 2.0 * m * k * t + norm, (m * k * weight_bits(precision) + vectors) / 8


NORM_GEMV = KernelFamily(
    name="norm_gemv",
    template="norm_gemv.comp.j2",
    dims=("M", "K", "S", "T", "X", "Y"),
    precisions=(F16, BF16, F32, Q8, NF4),
    # More rows by default than gemv has: they share the work of the norm.
    space=Space(
        *row_product_space(("direct", "staged"), rows=4, shared_floats=lambda p: p["WORKGROUP"])
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 1e-5},
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=160, S=3, T=1, X=16, Y=16),
        Problem(M=160, K=448, S=2, T=3, X=32, Y=32),
        Problem(M=224, K=352, S=1, T=5, X=16, Y=32),
        Problem(M=32, K=2080, S=1, T=1, X=32, Y=16),
        Problem(M=992, K=32, S=6, T=1, X=32, Y=32),
        Problem(M=96, K=992, S=3, T=7, X=32, Y=32),
        Problem(M=64, K=832, S=2, T=8, X=32, Y=32),
    ),
    default_problems=tuple(Problem(M=2592, K=768, S=6, T=1, X=x, Y=32) for x in (32, 16)),
    defaults={"S": 1, "T": 1, "X": 32, "Y": 32},
    problem_rule=refuses_matrices,
    matters=matters,
)
