"""lerp: RWKV-6's mixes of a token and the one before it, where the data decides how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import (
    ADDRESS,
    activation_bits,
    activation_type,
    addressing,
    refuses_activations,
)
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType, encode


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    activation = activation_type(p)
    return Signature(
        bindings=(
            Binding("shifted", activation, (3, "T", "C")),
            Binding("mix_by", F32, ("T", "S", "C")),
            Binding("out_y", activation, ("S", "T", "C"), "write"),
        ),
        push_constants=tuple(PushConstant(n) for n in "CST"),
        grid=Grid(x=(CeilDiv("C", 4 * p["WORKGROUP"]),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        fixed=(("X", p["X"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Normalised rows; mixes beyond 0 to 1 too, as sums of a weight and a low-rank product are."""
    t, c, s = (problem[d] for d in "TCS")
    shifted = rng.standard_normal((3, t, c), dtype=np.float32)
    return {
        "shifted": encode(shifted, activation_type(problem)),
        "mix_by": 0.5 + rng.standard_normal((t, s, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """X + (x_before - x) mix in float64.

    Source: RWKV-5 and 6 "Eagle and Finch" (arXiv 2404.05892), the data-dependent token shift.
    """
    _, x, before = given["shifted"].astype(np.float64)
    by = given["mix_by"].astype(np.float64).swapaxes(0, 1)
    return {"out_y": x + (before - x) * by}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): x and the one before once, S mixes in, S outputs."""
    t, c, s = (problem[d] for d in "TCS")
    return 2.0 * s * t * c, t * c * (problem["X"] / 8 * (2 + s) + 4.0 * s)


LERP = KernelFamily(
    name="lerp",
    template="lerp.comp.j2",
    dims=("T", "C", "S", "X"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS, *activation_bits()
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=tuple(
        Problem(T=t, C=c, S=s, X=x)
        for x in (32, 16)
        for t, c, s in ((1, 32, 1), (5, 96, 5), (1, 2052, 1), (37, 4, 6), (2, 252, 3), (3, 324, 2))
    ),
    default_problems=tuple(Problem(T=t, C=2048, S=5, X=x) for x in (32, 16) for t in (1, 256)),
    problem_rule=lambda problem: refuses_activations(problem, "C"),
)
