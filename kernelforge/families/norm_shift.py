"""norm_shift: layer norm and token shift of one token in one dispatch."""

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
from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("C",)),
            Binding("weight", F32, ("C",)),
            Binding("bias", F32, ("C",)),
            Binding("carry", F32, ("C",)),
            Binding("mix_by", F32, ("S", "C")),
            Binding("out_y", F32, ("S", "C"), "write"),
            Binding("next_carry", F32, ("C",), "write"),
        ),
        push_constants=(PushConstant("C"), PushConstant("S"), PushConstant("eps", F32)),
        grid=Grid(),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """A residual stream with a mean far from zero, and mixes in 0 to 1."""
    c, s = problem["C"], problem["S"]
    return {
        "in_x": rng.standard_normal(c, dtype=np.float32) * 3 + 1,
        "weight": 1 + 0.1 * rng.standard_normal(c, dtype=np.float32),
        "bias": rng.standard_normal(c, dtype=np.float32),
        "carry": rng.standard_normal(c, dtype=np.float32),
        "mix_by": rng.random((s, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Normalisation with biased variance, then the mixes; float64."""
    x = given["in_x"].astype(np.float64)
    centred = x - x.mean()
    normed = centred / np.sqrt((centred**2).mean() + constants["eps"])
    normed = normed * given["weight"] + given["bias"]
    mixed = normed + (given["carry"] - normed) * given["mix_by"].astype(np.float64)
    return {"out_y": mixed, "next_carry": normed}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): x, weight, bias and carry once; S mixes in, S outputs."""
    c, s = problem["C"], problem["S"]
    return (8.0 + 2 * s) * c, 4.0 * c * (5 + 2 * s)


NORM_SHIFT = KernelFamily(
    name="norm_shift",
    template="norm_shift.comp.j2",
    dims=("C", "S"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 1e-5},
    corner_problems=(Problem(C=32, S=1), Problem(C=96, S=6), Problem(C=320, S=2)),
    default_problems=(Problem(C=768, S=6),),
    problem_rule=lambda p: f"C must be a multiple of 4, found {p['C']}" if p["C"] % 4 else None,
)
