"""The problem that gemm and gemm_coop solve alike: buffers, inputs, oracle and cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays
from kernelforge.traits.choices import activation_type, epilogue, random_route, stored
from kernelforge.traits.matrices import random_weight, weight_bindings, weight_bits, weight_values
from kernelforge.weight_layouts import layout_name
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import MAX_SCRATCH_BYTES, Binding, PushConstant
from kernelforge_runtime.dtypes import F32, U32, DType

PRODUCT_DIMS = ("M", "K", "S", "T", "X", "Y")
"""Rows and columns of the matrix, inputs, tokens, bits of an element of x and of y."""
MOST_TILES = 256
"""More of them fill any GPU without K in parts, whatever it has of cores (some 150 today)."""
PRODUCT_CONSTANTS = (PushConstant("M"), PushConstant("K"), PushConstant("T"))


def product_bindings(precision: DType, p: Mapping[str, Any]) -> tuple[Binding, ...]:
    """The buffers of a variant with these activations, its weights laid out as LAYOUT says."""
    layout = layout_name(p.get("LAYOUT", "rows"), precision)
    return (
        *weight_bindings(precision, layout),
        Binding("in_x", activation_type(p, "X"), ("S", "T", "K")),
        Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
        Binding("aux", F32, ("M",)),
        Binding("out_y", activation_type(p, "Y"), ("T", "M"), "readwrite"),
    )


def parts_bindings(split: int, rows: int, tokens: int) -> tuple[Binding, ...]:
    """Where workgroups that share a tile leave their sums, and how many have; nothing for one.

    Args:
        split: parts of K, each a workgroup's.
        rows: of a tile.
        tokens: of a tile.
    """
    if split == 1:
        return ()
    return (
        Binding("parts", F32, (split, "T", "M"), "scratch"),
        Binding("arrivals", U32, (f"T/{tokens}", f"M/{rows}"), "zeroed"),
    )


def parts_help(split: int, rows: int, tokens: int, problem: Problem) -> bool:
    """Whether parts of K may be worth their sums' way through memory.

    A part must be longer than a tile is wide, and whole tiles alone too few for a GPU.
    """
    if split == 1:
        return True
    tiles = -(-problem["M"] // rows) * -(-problem["T"] // tokens)
    sums = 4 * split * problem["M"] * problem["T"]
    return problem["K"] >= 128 * split and tiles <= MOST_TILES and sums <= MAX_SCRATCH_BYTES


def product_inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs of T tokens, a random route per 32 rows."""
    m, k, s, t = (problem[d] for d in "MKST")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    return {
        **random_weight(m, k, precision, rng),
        "in_x": rng.standard_normal((s, t, k), dtype=np.float32).astype(x_type.np),
        "route": random_route(m, t, s, t * k, k, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal((t, m), dtype=np.float32).astype(y_type.np),
    }


def product_oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The product in float64, block by block, with each block's epilogue."""
    return routed_product(problem, weight_values(given, precision), given)


def routed_product(
    problem: Problem, weight: NDArray[np.float32], given: Mapping[str, NDArray[Any]]
) -> Arrays:
    """out_y [T, M] in float64 of weights [M, K] that were decoded, rounded as it is stored."""
    t, k = problem["T"], problem["K"]
    x = given["in_x"].reshape(-1)
    out = given["out_y"].astype(np.float64).reshape(t, -1)
    for block, way in enumerate(given["route"]):
        rows = slice(block * ROUTE_ROWS, (block + 1) * ROUTE_ROWS)
        starts = int(way[0]) + np.arange(t) * int(way[1])
        x_block = x[starts[:, None] + np.arange(k)].astype(np.float64)
        value = x_block @ weight[rows].astype(np.float64).T
        out[:, rows] = epilogue(way, value, out[:, rows], given["aux"])
    return {"out_y": stored(out, activation_type(problem, "Y"))}


def product_cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every operand once."""
    m, k, s, t, x, y = (problem[d] for d in "MKSTXY")
    return 2.0 * m * k * t, (m * k * weight_bits(precision) + t * (k * s * x + 2 * m * y)) / 8
