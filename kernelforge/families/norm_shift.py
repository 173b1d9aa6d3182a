"""norm_shift: layer norm and token shift in one dispatch, for one token of each sequence."""

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
from kernelforge.traits.segments import decode_segments
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
            Binding("carry", F32, ("T", "C")),
            Binding("mix_by", F32, ("S", "C")),
            Binding("segment", U32, ("T", 4)),
            Binding("out_y", activation, ("S", "T", "C"), "readwrite"),
            Binding("next_carry", F32, ("T", "C"), "readwrite"),
        ),
        push_constants=(*(PushConstant(n) for n in "CST"), PushConstant("eps", F32)),
        grid=Grid(x=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
        fixed=(("X", p["X"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """A residual stream with a mean far from zero, and mixes in 0 to 1."""
    t, c, s = (problem[d] for d in "TCS")
    activation = activation_type(problem)
    x = rng.standard_normal((t, c), dtype=np.float32) * 3 + 1
    return {
        "in_x": encode(x, activation),
        "weight": 1 + 0.1 * rng.standard_normal(c, dtype=np.float32),
        "bias": rng.standard_normal(c, dtype=np.float32),
        "carry": rng.standard_normal((t, c), dtype=np.float32),
        "mix_by": rng.random((s, c), dtype=np.float32),
        "segment": decode_segments(t, rng),
        "out_y": encode(rng.standard_normal((s, t, c), dtype=np.float32), activation),
        "next_carry": rng.standard_normal((t, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Normalisation with biased variance, then the mixes; float64. Padding leaves all as it is."""
    _, count, slot, _ = given["segment"].T
    alive = count > 0
    slot = slot[alive]
    x = given["in_x"][alive].astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + constants["eps"])
    normed = normed * given["weight"] + given["bias"]
    mixed, carry = (given[name].astype(np.float64) for name in ("out_y", "next_carry"))
    mix_by = given["mix_by"].astype(np.float64)[:, None]
    mixed[:, alive] = normed + (given["carry"][slot] - normed) * mix_by
    carry[slot] = normed
    return {"out_y": mixed, "next_carry": carry}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): x and the carry once for each token, S mixes and the norm in, S outputs."""
    t, c, s = (problem[d] for d in "TCS")
    return (8.0 + 2 * s) * t * c, c * (problem["X"] / 8 * t * (1 + s) + 4.0 * (2 + s + 2 * t))


NORM_SHIFT = KernelFamily(
    name="norm_shift",
    template="norm_shift.comp.j2",
    dims=("T", "C", "S", "X"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS, *activation_bits()),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 1e-5},
    corner_problems=tuple(
        Problem(T=t, C=c, S=s, X=x)
        for x in (32, 16)
        for t, c, s in (
            *((1, 32, 1), (1, 96, 6), (3, 320, 2), (1, 2052, 1), (37, 4, 5), (2, 252, 3)),
            (5, 36, 3),
        )
    ),
    default_problems=tuple(Problem(T=t, C=768, S=6, X=x) for x in (32, 16) for t in (1, 8)),
    problem_rule=lambda problem: refuses_activations(problem, "C"),
)
