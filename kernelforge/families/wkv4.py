"""wkv4: RWKV-4's recurrence over the tokens of each segment, channel by channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, ProblemConstraint, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge.traits.segments import filled_segments, random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

FLOPS_PER_STEP = 24
"""Of one channel and token: four exponentials, each counted as one, and what stands around them."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    channels = p["WORKGROUP"] // p["SPLIT"] * p["VEC"]
    return Signature(
        bindings=(
            Binding("in_p", F32, ("T", "P")),
            Binding("param", F32, (2, "C")),
            Binding("state", F32, ("B", 3, "C"), "readwrite"),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", F32, ("T", "C"), "readwrite"),
        ),
        push_constants=tuple(PushConstant(name) for name in "TCP"),
        grid=Grid(x=(CeilDiv("C", channels),), y=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Decays from nearly none to all at once; a state of earlier tokens, not the initial one.

    The initial exponent, -1e30, would make any error of a state look small; it has its own test.
    """
    t, c, b, p = (problem[d] for d in "TCBP")
    rows = rng.standard_normal((t, p), dtype=np.float32)
    rows[:, c : 2 * c] *= 3
    decay = -np.exp(rng.uniform(-8, 2, c))
    state = rng.standard_normal((b, 3, c), dtype=np.float32)
    state[:, 1] = rng.uniform(0.5, 4, (b, c))  # a sum of weights of which the largest was 1
    return {
        "in_p": rows,
        "param": np.stack([decay, rng.standard_normal(c)]).astype(np.float32),
        "state": state,
        "segment": random_segments(b, t, rng),
        "out_y": rng.standard_normal((t, c), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The recurrence in float64, segment by segment, token by token.

    Source: RWKV (arXiv 2305.13048), appendix on numerical stability.
    """
    r, k, v = np.split(given["in_p"][:, : 3 * problem["C"]].astype(np.float64), 3, axis=1)
    w, u = given["param"].astype(np.float64)
    states = given["state"].astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        n, d, p = states[slot]
        for t in range(first, first + count):
            top = np.maximum(p, u + k[t])
            old, new = np.exp(p - top), np.exp(u + k[t] - top)
            out[t] = r[t] * (old * n + new * v[t]) / (old * d + new)
            top = np.maximum(p + w, k[t])
            old, new = np.exp(p + w - top), np.exp(k[t] - top)
            n, d, p = old * n + new * v[t], old * d + new, top
        states[slot] = n, d, p
    return {"out_y": out, "state": states}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once; r, k, v, decay and bonus in, y out."""
    t, c, b = (problem[d] for d in "TCB")
    return float(FLOPS_PER_STEP * t * c), 4.0 * c * (4 * t + 6 * b + 2)


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot work on this problem; None where it can."""
    c, p = problem["C"], problem["P"]
    if c % 4 or p % 4:
        return f"C and P must be multiples of 4, found C={c} P={p}"
    return None if p >= 3 * c else f"rows of in_p hold r, k and v ({3 * c}), found P={p}"


WKV4 = KernelFamily(
    name="wkv4",
    template="wkv4.comp.j2",
    dims=("T", "C", "B", "P"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (8, 16, 32, 64, 128, 256), default=64),
        Choice("VEC", (1, 2, 4), default=1),
        Choice("TOKENS", (1, 2, 4, 8), default=4),
        Choice("SPLIT", (1, 2, 4, 8), default=1),
        ADDRESS,
        Constraint(
            "the sums of all stretches fit the shared memory",
            lambda p, d: p["SPLIT"] == 1 or 12 * p["WORKGROUP"] * p["VEC"] <= d.max_shared_memory,
        ),
        ProblemConstraint(
            "a stretch is a few tokens long",
            lambda p, d, problem: p["SPLIT"] == 1 or problem["T"] >= 4 * p["SPLIT"],
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, C=4, B=1, P=12),
        Problem(T=37, C=76, B=3, P=236),
        Problem(T=64, C=36, B=1, P=108),
        Problem(T=2, C=64, B=5, P=192),
        Problem(T=1, C=1028, B=1, P=3084),
        Problem(T=127, C=4, B=7, P=12),
        Problem(T=31, C=60, B=1, P=184),
        Problem(T=16, C=128, B=2, P=512),
    ),
    default_problems=(
        Problem(T=1, C=768, B=1, P=2304),
        Problem(T=256, C=768, B=1, P=2304),
    ),
    tolerance=4.0,
    problem_rule=refuses,
)
