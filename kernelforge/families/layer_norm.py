"""layer_norm: layer norm (one group) and group norm (several) over the rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import (
    ADDRESS,
    addressing,
    reduction_features,
    reduction_subgroup,
    workgroup_reduction,
)
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("T", "C")),
            Binding("weight", F32, ("C",)),
            Binding("bias", F32, ("C",)),
            Binding("step", U32, (4,)),
            Binding("out_y", F32, ("T", "C"), "write"),
        ),
        push_constants=(
            PushConstant("C"),
            PushConstant("G"),
            PushConstant("last"),
            PushConstant("eps", F32),
        ),
        grid=Grid(x=(CeilDiv("T"), CeilDiv("G"))),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Rows with a mean far from zero, as residual streams have."""
    t, c = problem["T"], problem["C"]
    return {
        "in_x": rng.standard_normal((t, c), dtype=np.float32) * 3 + 1,
        "weight": 1 + 0.1 * rng.standard_normal(c, dtype=np.float32),
        "bias": rng.standard_normal(c, dtype=np.float32),
        "step": np.array([t, 0, 0, 0], np.uint32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Normalisation in float64, biased variance."""
    t, c, g = (problem[d] for d in "TCG")
    x = given["in_x"].astype(np.float64).reshape(t, g, c // g)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + constants["eps"])
    return {"out_y": normed.reshape(t, c) * given["weight"] + given["bias"]}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): read once, written once."""
    size = problem["T"] * problem["C"]
    return 8.0 * size, 4.0 * (2 * size + 2 * problem["C"])


def refuses(problem: Problem) -> str | None:
    """Groups are whole vectors of four."""
    if problem["C"] % (4 * problem["G"]):
        return f"C must be a multiple of 4 G, found C={problem['C']} G={problem['G']}"
    return None


LAYER_NORM = KernelFamily(
    name="layer_norm",
    template="layer_norm.comp.j2",
    dims=("T", "C", "G"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 1e-5, "last": 0},
    corner_problems=(
        Problem(T=1, C=32, G=1),
        Problem(T=5, C=96, G=1),
        Problem(T=3, C=256, G=4),
    ),
    default_problems=(Problem(T=1, C=768, G=1), Problem(T=256, C=768, G=1)),
    problem_rule=refuses,
)
