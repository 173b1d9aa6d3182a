"""last_token: rows of every sequence's last token, for models without a norm before the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge.traits.segments import random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("T", "C")),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", F32, ("B", "C"), "readwrite"),
        ),
        push_constants=(PushConstant("C"),),
        grid=Grid(x=(CeilDiv("C", 4 * p["WORKGROUP"]),), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Anything; some segments are padding."""
    t, c, b = (problem[d] for d in "TCB")
    return {
        "in_x": rng.standard_normal((t, c), dtype=np.float32),
        "segment": random_segments(b, t, rng),
        "out_y": rng.standard_normal((b, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Plain indexing."""
    out = given["out_y"].copy()
    for row, (first, count, _, _) in zip(out, given["segment"].astype(int), strict=True):
        if count:
            row[:] = given["in_x"][first + count - 1]
    return {"out_y": out}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): a row in and out per sequence."""
    return 0.0, 8.0 * problem["B"] * problem["C"]


LAST_TOKEN = KernelFamily(
    name="last_token",
    template="last_token.comp.j2",
    dims=("T", "C", "B"),
    precisions=(F32,),
    space=Space(Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, C=32, B=1),
        Problem(T=9, C=36, B=3),
        Problem(T=1, C=2052, B=1),
        Problem(T=257, C=4, B=5),
        Problem(T=37, C=252, B=7),
        Problem(T=64, C=768, B=8),
    ),
    default_problems=(Problem(T=256, C=64, B=1),),
    problem_rule=lambda p: f"C must be a multiple of 4, found {p['C']}" if p["C"] % 4 else None,
)
