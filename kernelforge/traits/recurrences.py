"""What the two forms of a recurrence share: their buffers, inputs, oracle and cost.

Both forms of RWKV-5/6 (wkv6, wkv6_chunk) and of RWKV-7 (wkv7, wkv7_chunk) take the same buffers, so
that a model may use either; each pair has one oracle, which is sequential and in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays
from kernelforge.traits import goose
from kernelforge.traits.segments import filled_segments, random_segments
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.dtypes import F32, U32, DType

WKV6_BINDINGS = (
    Binding("in_p", F32, ("T", "P")),
    Binding("decay", F32, ("D", "H", "N")),
    Binding("bonus", F32, ("H", "N")),
    Binding("state", F32, ("B", "H", "N", "N"), "readwrite"),
    Binding("segment", U32, ("B", 4)),
    Binding("out_y", F32, ("T", "H", "N"), "readwrite"),
)
WKV7_BINDINGS = (
    Binding("in_s", F32, (6, "T", "H", "N")),
    Binding("state", F32, ("B", "H", "N", "N"), "readwrite"),
    Binding("segment", U32, ("B", 4)),
    Binding("out_y", F32, ("T", "H", "N"), "readwrite"),
)

# RWKV-5 and RWKV-6


def wkv6_inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Raw decays as in trained models, -6 to 2: factors from 0.998 down to 0.0006."""
    t, h, n, b, p, d = (problem[name] for name in "THNBPD")
    return {
        "in_p": rng.standard_normal((t, p), dtype=np.float32),
        "decay": rng.uniform(-6, 2, (d, h, n)).astype(np.float32),
        "bonus": rng.standard_normal((h, n), dtype=np.float32),
        "state": rng.standard_normal((b, h, n, n), dtype=np.float32),
        "segment": random_segments(b, t, rng),
        "out_y": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def wkv6_oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The recurrence in float64, segment by segment, token by token; read before the update.

    Source: RWKV-5 and RWKV-6, "Eagle and Finch" (arXiv 2404.05892), with the state transposed.
    """
    t, h, n, d = (problem[name] for name in "THND")
    rows = given["in_p"][:, : 3 * h * n].astype(np.float64).reshape(t, 3, h, n)
    factor = np.exp(-np.exp(given["decay"].astype(np.float64)))
    bonus = given["bonus"].astype(np.float64)
    states = given["state"].astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        for token in range(first, first + count):
            r, k, v = rows[token]
            w = factor[token if d > 1 else 0]
            new = v[:, :, None] * k[:, None, :]
            out[token] = ((bonus[:, None, :] * new + states[slot]) * r[:, None, :]).sum(-1)
            states[slot] = w[:, None, :] * states[slot] + new
    return {"out_y": out, "state": states}


def wkv6_cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once; r, k, v, decays and bonus in, y out."""
    t, h, n, b, d = (problem[name] for name in "THNBD")
    return 5.0 * t * h * n * n, 4.0 * h * n * (2 * b * n + 4 * t + d + 1)


def wkv6_refuses(problem: Problem) -> str | None:
    """Why no form can work on this problem; None where it can."""
    t, h, n, p, d = (problem[name] for name in "THNPD")
    if n not in (8, 16, 32, 64, 128):
        return f"head sizes are 8, 16, 32, 64 or 128, found {n}"
    if p < 3 * h * n or p % 4:
        return f"rows of in_p hold r, k and v ({3 * h * n}) in whole vectors of 4, found P={p}"
    if d not in (1, t):
        return f"decays are for all tokens (D=1) or for each (D={t}), found D={d}"
    return None


# RWKV-7


def wkv7_inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Decays over their whole range; as in the model kk has unit length, a = -kk, b = kk * rate."""
    t, h, n = (problem[d] for d in "THN")
    r, k, v, kk = rng.standard_normal((4, t, h, n)).astype(np.float32)
    w = np.exp(-0.6065306597 * rng.random((t, h, n))).astype(np.float32)
    kk /= np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
    rate = rng.random((t, h, n), dtype=np.float32)
    return {
        "in_s": np.stack([r, w, k, v, -kk, kk * rate]),
        "state": rng.standard_normal((problem["B"], h, n, n), dtype=np.float32),
        "segment": random_segments(problem["B"], t, rng),
        "out_y": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def wkv7_oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """See `kernelforge.traits.goose.recurrence`."""
    out, states = goose.recurrence(given["in_s"], given["state"], given["segment"], given["out_y"])
    return {"out_y": out, "state": states}


def wkv7_cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): each state in and out once, six vectors in, one out."""
    t, h, n, b = (problem[d] for d in "THNB")
    return 10.0 * t * h * n * n, 4.0 * (2 * b * h * n * n + 7 * t * h * n)


def wkv7_refuses(problem: Problem) -> str | None:
    """Why no form can work on this problem; None where it can."""
    if problem["N"] in (16, 32, 64, 128):
        return None
    return f"head sizes are 16, 32, 64 or 128, found {problem['N']}"
