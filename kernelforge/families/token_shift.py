"""token_shift: mixes each token with the one before it in its sequence, several mixes at once."""

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
from kernelforge.traits.segments import filled_segments, owners, random_segments
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
            Binding("carry", F32, ("B", "C")),
            Binding("mix_by", F32, ("S", "C")),
            Binding("owner", U32, ("T",)),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", activation, ("S", "T", "C"), "write"),
            Binding("next_carry", F32, ("B", "C"), "readwrite"),
        ),
        push_constants=(PushConstant("C"), PushConstant("S"), PushConstant("T")),
        grid=Grid(x=(CeilDiv("C", 4 * p["WORKGROUP"]),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        fixed=(("X", p["X"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Normalised rows and mixes in 0 to 1."""
    t, c, s, b = (problem[d] for d in "TCSB")
    segment = random_segments(b, t, rng)
    x = rng.standard_normal((t, c), dtype=np.float32)
    return {
        "in_x": encode(x, activation_type(problem)),
        "carry": rng.standard_normal((b, c), dtype=np.float32),
        "mix_by": rng.random((s, c), dtype=np.float32),
        "owner": owners(segment, t),
        "segment": segment,
        "next_carry": rng.standard_normal((b, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """X + (x_before - x) mix; each carry that is used becomes its segment's last token.

    Tokens of no segment are mixed with the row before them, the first row with itself.
    """
    x = given["in_x"].astype(np.float64)
    before = np.concatenate([x[:1], x[:-1]])
    carry = given["next_carry"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        before[first] = given["carry"][slot]
        carry[slot] = x[first + count - 1]
    mixed = x + (before - x) * given["mix_by"].astype(np.float64)[:, None, :]
    return {"out_y": mixed, "next_carry": carry}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): x once, S outputs, the carries in and out."""
    t, c, s, b = (problem[d] for d in "TCSB")
    return 2.0 * s * t * c, problem["X"] / 8 * t * c * (1 + s) + 4.0 * c * (s + 2 * b)


TOKEN_SHIFT = KernelFamily(
    name="token_shift",
    template="token_shift.comp.j2",
    dims=("T", "C", "S", "B", "X"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS, *activation_bits()
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=tuple(
        Problem(T=t, C=c, S=s, B=b, X=x)
        for x in (32, 16)
        for t, c, s, b in (
            *((1, 32, 1, 1), (5, 96, 6, 1), (9, 320, 2, 3), (1, 2052, 1, 1), (37, 4, 5, 7)),
            *((3, 252, 2, 2), (2, 36, 3, 4)),
        )
    ),
    default_problems=tuple(Problem(T=t, C=768, S=6, B=1, X=x) for x in (32, 16) for t in (1, 256)),
    problem_rule=lambda problem: refuses_activations(problem, "C"),
)
