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
from kernelforge_runtime.abi.signature import Addressing
from kernelforge_runtime.dtypes import F16, F32, DType

ADDRESS = Flag("ADDRESS", needs="buffer_device_address")
ROUTE_ROWS = 32
"""Rows of a matrix that share one route entry: where their input starts, and their epilogue."""


def addressing(p: Mapping[str, Any]) -> Addressing:
    """How a variant's buffers are bound."""
    return "address" if p["ADDRESS"] else "descriptor"


def activation_bits() -> tuple[Choice | ProblemConstraint, ...]:
    """X for templates that read or write activations in either width (lib/activations).

    float16 moves in whole words of two, which asks nothing of the device.
    """
    return (
        Choice("X", (32, 16), default=32),
        ProblemConstraint(
            "compiled for these activations", lambda p, d, problem: p["X"] == problem["X"]
        ),
    )


def activation_type(given: Mapping[str, Any]) -> DType:
    """Element type of activations, for a variant's parameters or for a problem."""
    return F16 if given["X"] == 16 else F32


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


def refuses_unpadded(problem: Problem) -> str | None:
    """Matrices come padded: M to a route block, K to whole vectors of every width."""
    if problem["M"] % ROUTE_ROWS or problem["K"] % 32:
        return f"M and K must be multiples of 32, found M={problem['M']} K={problem['K']}"
    return None


def random_route(
    rows: int, slots: int, slot_size: int, k: int, rng: np.random.Generator
) -> NDArray[Any]:
    """A random route [rows / 32, 4] of u32: input offset, row stride, epilogue, 0."""
    route = np.zeros((rows // ROUTE_ROWS, 4), np.uint32)
    route[:, 0] = rng.integers(0, slots, len(route)) * slot_size
    route[:, 1] = k
    route[:, 2] = rng.integers(0, 5, len(route))
    return route


def epilogue(code: int, value: NDArray[Any], before: NDArray[Any]) -> NDArray[Any]:
    """What a route's code does to a product: none, relu squared, tanh, sigmoid, add."""
    if code == 1:
        return np.asarray(np.maximum(value, 0) ** 2)
    if code == 2:
        return np.asarray(np.tanh(value))
    if code == 3:
        return np.asarray(1 / (1 + np.exp(-value)))
    return before + value if code == 4 else value
