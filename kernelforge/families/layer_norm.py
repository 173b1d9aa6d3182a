"""layer_norm: layer norm over the rows of a matrix, or over each sequence's last row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge.traits.choices import (
    ADDRESS,
    activation_bits,
    activation_type,
    addressing,
    reduction_features,
    reduction_subgroup,
    refuses_activations,
    workgroup_reduction,
)
from kernelforge.traits.segments import random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType, encode


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    activation = activation_type(p)
    return Signature(
        bindings=(
            Binding("in_x", activation, ("T", "C")),
            Binding("weight", F32, ("C",)),
            Binding("bias", F32, ("C",)),
            Binding("segment", U32, ("T", 4)),
            Binding("out_y", activation, ("T", "C"), "write"),
        ),
        push_constants=(PushConstant("C"), PushConstant("last"), PushConstant("eps", F32)),
        grid=Grid(x=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
        fixed=(("X", p["X"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Rows with a mean far from zero, as residual streams have."""
    t, c = problem["T"], problem["C"]
    x = rng.standard_normal((t, c), dtype=np.float32) * 3 + 1
    return {
        "in_x": encode(x, activation_type(problem)),
        "weight": 1 + 0.1 * rng.standard_normal(c, dtype=np.float32),
        "bias": rng.standard_normal(c, dtype=np.float32),
        "segment": random_segments(t, t, rng),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Normalisation in float64, biased variance; `in_x` may have more rows where `last` is set."""
    x = given["in_x"].astype(np.float64).reshape(-1, problem["C"])
    if constants["last"]:
        first, count = given["segment"][:, :2].astype(np.int64).T
        x = x[np.where(count > 0, first + count - 1, 0)]
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + constants["eps"])
    return {"out_y": normed * given["weight"] + given["bias"]}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): read once, written once."""
    size = problem["T"] * problem["C"]
    return 8.0 * size, problem["X"] / 8 * 2 * size + 8.0 * problem["C"]


LAYER_NORM = KernelFamily(
    name="layer_norm",
    template="layer_norm.comp.j2",
    dims=("T", "C", "X"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS, *activation_bits()),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 1e-5, "last": 0},
    corner_problems=tuple(
        Problem(T=t, C=c, X=x)
        for x in (32, 16)
        for t, c in ((1, 32), (5, 96), (1, 2052), (37, 4), (2, 252), (3, 260))
    ),
    default_problems=tuple(Problem(T=t, C=768, X=x) for x in (32, 16) for t in (1, 256)),
    problem_rule=lambda problem: refuses_activations(problem, "C"),
)
