"""What several families have in common: reductions, addressing, and the routes of matrix products.

Families do not import each other; what two of them need alike stands here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.space import Choice, Constraint, Flag, ProblemConstraint
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import (
    ACTIVATION_MASK,
    ACTIVATIONS,
    ADD,
    BIAS,
    GATE,
    HALVE,
    MAX_STRIDE,
    ROUTE_ROWS,
    STRIDE_SHIFT,
    route_code,
)
from kernelforge_runtime.abi.signature import Addressing
from kernelforge_runtime.dtypes import F16, F32, DType

ADDRESS = Flag("ADDRESS", needs="buffer_device_address")
WORD = Choice("WORD", (32, 64), default=32, needs={64: "int64"})
"""Bits of the words in which a template moves its vectors, see lib/bindings."""


WORD_BY_ADDRESS = Constraint(
    "long words move by address", lambda p, d: p["WORD"] == 32 or p["ADDRESS"]
)


def word_features(p: Mapping[str, Any]) -> tuple[str, ...]:
    """Device features that moving words of this width takes; 32 bits where p says nothing."""
    return ("int64",) if p.get("WORD") == 64 else ()


def addressing(p: Mapping[str, Any]) -> Addressing:
    """How a variant's buffers are bound."""
    return "address" if p["ADDRESS"] else "descriptor"


def activation_bits(*names: str) -> tuple[Choice | ProblemConstraint, ...]:
    """X, or these, for templates that read or write activations in either width.

    float16 moves in whole words of two, which asks nothing of the device.
    """
    names = names or ("X",)
    return (
        *(Choice(name, (32, 16), default=32) for name in names),
        ProblemConstraint(
            "compiled for these activations",
            lambda p, d, problem: all(p[name] == problem[name] for name in names),
        ),
    )


def activation_type(given: Mapping[str, Any], name: str = "X") -> DType:
    """Element type of activations, for a variant's parameters or for a problem."""
    return F16 if given[name] == 16 else F32


def refuses_activations(problem: Problem, *quads: str) -> str | None:
    """Activations have 16 or 32 bits; the dimensions `quads` are moved in vectors of four."""
    for name in quads:
        if problem[name] % 4:
            return f"{name} must be a multiple of 4, found {problem[name]}"
    if problem["X"] not in (16, 32):
        return f"activations have 16 or 32 bits, found X={problem['X']}"
    return None


def workgroup_reduction(default: int = 64) -> tuple[Choice | Constraint, ...]:
    """WORKGROUP and REDUCE for templates that sum over a whole workgroup (lib/reduce)."""
    return (
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=default),
        Choice(
            "REDUCE",
            ("subgroup", "hybrid", "shared"),
            default="hybrid",
            needs={"subgroup": "subgroup_arithmetic", "hybrid": "subgroup_arithmetic"},
        ),
        Constraint(
            "a subgroup reduction is over one whole subgroup",
            lambda p, d: (
                p["REDUCE"] != "subgroup" or d.subgroup_min <= p["WORKGROUP"] <= d.subgroup_max
            ),
        ),
    )


def reduction_features(p: Mapping[str, Any]) -> tuple[str, ...]:
    """Device features of a workgroup reduction."""
    return () if p["REDUCE"] == "shared" else ("subgroup_arithmetic",)


def reduction_subgroup(p: Mapping[str, Any]) -> int:
    """The subgroup size that a workgroup reduction requires; 0 for any."""
    return int(p["WORKGROUP"]) if p["REDUCE"] == "subgroup" else 0


def refuses_matrices(problem: Problem) -> str | None:
    """Matrices come padded, M to a route block, K to whole vectors; elements have 16 or 32 bits."""
    if problem["M"] % ROUTE_ROWS or problem["K"] % 32:
        return f"M and K must be multiples of 32, found M={problem['M']} K={problem['K']}"
    if problem["X"] not in (16, 32) or problem["Y"] not in (16, 32):
        return f"activations have 16 or 32 bits, found X={problem['X']} Y={problem['Y']}"
    return None


def random_route(
    rows: int, tokens: int, slots: int, slot_size: int, k: int, rng: np.random.Generator
) -> NDArray[Any]:
    """A random route [rows / 32, 4] of u32, with epilogues of every kind (see abi/route).

    Args:
        rows: of the matrix; aux has as many elements, and nothing reads behind them.
        tokens: of the input.
        slots: inputs to choose from.
        slot_size: elements from one input to the next.
        k: elements from one token to the next.
        rng: source of the choices.
    """
    route = np.zeros((rows // ROUTE_ROWS, 4), np.uint32)
    route[:, 0] = rng.integers(0, slots, len(route)) * slot_size
    route[:, 1] = k
    spare = rows - ROUTE_ROWS
    for way in route:
        activation = str(rng.choice(list(ACTIVATIONS)))
        bias, gate = ((False, False), (True, False), (False, True))[rng.integers(3)]
        add, halve = (bool(flag) for flag in rng.integers(0, 2, 2))
        stride = min(int(rng.integers(0, spare // max(tokens - 1, 1) + 1)), MAX_STRIDE)
        way[2] = route_code(activation, bias, gate, add, halve, stride)
        way[3] = rng.integers(0, spare - (tokens - 1) * stride + 1)
    return route


def epilogue(
    way: NDArray[Any], value: NDArray[Any], before: NDArray[Any], aux: NDArray[Any]
) -> NDArray[Any]:
    """What a route entry makes of its block's sums, in float64.

    Args:
        way: the entry [4].
        value: sums [T, 32].
        before: what y held there [T, 32].
        aux: the whole vector, flat.
    """
    code, offset = int(way[2]), int(way[3])
    other = np.zeros_like(value)
    if code & (BIAS | GATE):
        starts = offset + np.arange(len(value)) * (code >> STRIDE_SHIFT)
        other = aux[starts[:, None] + np.arange(ROUTE_ROWS)].astype(np.float64)
    if code & BIAS:
        value = value + other
    value = _activate(code & ACTIVATION_MASK, value)
    if code & GATE:
        value = value * other
    if code & ADD:
        value = value + before
    return value * 0.5 if code & HALVE else value


def _activate(kind: int, value: NDArray[Any]) -> NDArray[Any]:
    if kind == ACTIVATIONS["relu2"]:
        return np.asarray(np.maximum(value, 0) ** 2)
    if kind == ACTIVATIONS["tanh"]:
        return np.asarray(np.tanh(value))
    sigmoid = 0.5 + 0.5 * np.tanh(0.5 * value)
    if kind == ACTIVATIONS["sigmoid"]:
        return np.asarray(sigmoid)
    return np.asarray(value * sigmoid) if kind == ACTIVATIONS["silu"] else value


def stored(value: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """The value as an element of this type holds it: float16 is infinite from 65520 on."""
    with np.errstate(over="ignore"):
        return value.astype(dtype.np).astype(np.float64) if dtype == F16 else value
