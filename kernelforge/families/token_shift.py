"""token_shift: mixes each token with the one before, for several mixes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import ADDRESS, addressing
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("T", "C")),
            Binding("carry", F32, ("C",)),
            Binding("mix_by", F32, ("S", "C")),
            Binding("step", U32, (4,)),
            Binding("out_y", F32, ("S", "T", "C"), "write"),
            Binding("next_carry", F32, ("C",), "write"),
        ),
        push_constants=(PushConstant("C"), PushConstant("S"), PushConstant("T")),
        grid=Grid(x=(CeilDiv("C", 4 * p["WORKGROUP"]),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Normalised rows and mixes in 0 to 1."""
    t, c, s = (problem[d] for d in "TCS")
    return {
        "in_x": rng.standard_normal((t, c), dtype=np.float32),
        "carry": rng.standard_normal(c, dtype=np.float32),
        "mix_by": rng.random((s, c), dtype=np.float32),
        "step": np.array([t, 0, 0, 0], np.uint32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """X + (x_before - x) mix; the carry is the last token."""
    x = given["in_x"].astype(np.float64)
    before = np.concatenate([given["carry"][None], x[:-1]])
    mixed = x + (before - x) * given["mix_by"].astype(np.float64)[:, None, :]
    return {"out_y": mixed, "next_carry": x[-1]}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): x once, S outputs."""
    t, c, s = (problem[d] for d in "TCS")
    return 2.0 * s * t * c, 4.0 * (t * c * (1 + s) + c * (s + 2))


TOKEN_SHIFT = KernelFamily(
    name="token_shift",
    template="token_shift.comp.j2",
    dims=("T", "C", "S"),
    precisions=(F32,),
    space=Space(Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, C=32, S=1),
        Problem(T=5, C=96, S=6),
        Problem(T=3, C=320, S=2),
    ),
    default_problems=(Problem(T=1, C=768, S=6), Problem(T=256, C=768, S=6)),
    problem_rule=lambda p: f"C must be a multiple of 4, found {p['C']}" if p["C"] % 4 else None,
)
