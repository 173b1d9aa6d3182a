"""sample: draws a token from every row of logits, so that only tokens are read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Constraint, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.sampling import (
    CHOICE_WORDS,
    DRAW,
    FARTHEST,
    LARGEST,
    NO_TOKEN,
    SKIP,
)
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

_LIKELY = 12
"""Tokens of a drawn row that have any weight to speak of."""
_MARGIN = 1e-3
"""How far a draw and a top_p lie from where another token would be right: rounding cannot tell."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("logits", F32, ("B", "M"), "readwrite"),
            Binding("choice", U32, ("B", CHOICE_WORDS)),
            Binding("penalty", U32, ("B", "H", 2)),
            Binding("out_token", U32, ("B",), "write"),
        ),
        push_constants=(PushConstant("V"), PushConstant("M"), PushConstant("H")),
        grid=Grid(x=(CeilDiv("B"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Rows of every kind; draws and cuts stay away from where rounding would decide."""
    v, m, b, h = (problem[d] for d in "VMBH")
    logits = np.full((b, m), 50, np.float32)  # behind V: it must not count
    choice = np.zeros((b, CHOICE_WORDS), np.uint32)
    penalty = np.zeros((b, h, 2), np.uint32)
    for i in range(b):
        logits[i, :v] = -60 + rng.standard_normal(v, dtype=np.float32)
        likely = rng.permutation(v)[:_LIKELY]
        logits[i, likely] = 3 - 0.37 * np.arange(len(likely), dtype=np.float32)
        if len(likely) > 5:
            logits[i, likely[3:6]] = logits[i, likely[3]]
        pairs = min(int(rng.integers(0, 4)), h, v)
        penalty[i, :pairs, 0] = likely[:pairs]
        penalty[i, :pairs, 1] = (0.25 + rng.random(pairs, dtype=np.float32)).view(np.uint32)
        kind = (DRAW, DRAW, LARGEST, DRAW, SKIP, DRAW)[i % 6]
        top_k = (0, 4, 0, 2, 0, 7)[i % 6]
        for _ in range(1000):
            top_p = np.float32(1.0 if i % 6 == 5 else 0.2 + 0.79 * rng.random())
            inverse = np.float32(1 / (0.3 + 2 * rng.random()))
            seed = rng.integers(0, 2**32, 3, dtype=np.uint32)
            words = [kind, pairs, *seed.tolist(), top_k, *_bits(top_p, inverse)]
            choice[i] = words
            if kind != DRAW or _draw(_penalised(logits, choice, penalty, i, v), choice[i])[1]:
                break
    return {"logits": logits, "choice": choice, "penalty": penalty}


def _bits(*values: np.float32) -> list[int]:
    return [int(word) for word in np.array(values, np.float32).view(np.uint32)]


def _penalised(
    logits: NDArray[Any], choice: NDArray[Any], penalty: NDArray[Any], row: int, vocab: int
) -> NDArray[np.float32]:
    out = logits[row, :vocab].astype(np.float32)
    pairs = penalty[row, : choice[row, 1]]
    out[pairs[:, 0]] -= pairs[:, 1].copy().view(np.float32)
    return out


def uniform(low: int, high: int, count: int) -> float:
    """pcg4d of (low, high, count, 0) as a number in [0, 1) (see the template's source)."""
    with np.errstate(over="ignore"):
        v = np.array([low, high, count, 0], np.uint32) * np.uint32(1664525)
        v += np.uint32(1013904223)
        for step in range(2):
            for a, b, c in ((0, 1, 3), (1, 2, 0), (2, 0, 1), (3, 1, 2)):
                v[a] += v[b] * v[c]
            if step == 0:
                v ^= v >> np.uint32(16)
    return int(v[0] >> 8) / 2**24


def _draw(logits: NDArray[np.float32], words: NDArray[np.uint32]) -> tuple[int, bool]:
    """(the token that sorting gives, whether rounding could not give another)."""
    _, _, low, high, count, top_k = (int(w) for w in words[:6])
    top_p, inverse = (float(x) for x in words[6:].copy().view(np.float32))
    distance = (logits.max() - logits).astype(np.float64)
    order = np.argsort(distance, kind="stable")
    reached = np.cumsum(np.exp(-distance[order]))
    reached /= reached[-1]
    sure = True
    kept = distance <= FARTHEST
    if top_p < 1:
        kept &= distance <= distance[order[np.searchsorted(reached, top_p)]]
        sure = bool(np.abs(reached - top_p).min() > _MARGIN)
    if 0 < top_k < kept.sum():
        kept[order[top_k:]] = False
    weight = np.where(kept, np.exp(-distance * inverse), 0)
    total = np.cumsum(weight)
    total /= total[-1]
    u = uniform(low, high, count)
    edges = total[weight > 1e-9]  # what is below has no edge of its own to speak of
    near = np.abs(edges[:-1] - u).min() if len(edges) > 1 else 1.0
    token = int(np.searchsorted(total, u, side="right"))
    return token, sure and bool(near > _MARGIN) and 1 - u > _MARGIN


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """By sorting, in float64."""
    v, b = problem["V"], problem["B"]
    logits, choice, penalty = given["logits"].copy(), given["choice"], given["penalty"]
    token = np.full(b, NO_TOKEN, np.uint32)
    for i in range(b):
        if choice[i, 0] == SKIP:
            continue
        logits[i, :v] = row = _penalised(logits, choice, penalty, i, v)
        if np.isfinite(row.max()):  # NaN is the largest to max
            token[i] = np.argmax(row) if choice[i, 0] == LARGEST else _draw(row, choice[i])[0]
    return {"logits": logits, "out_token": token}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every logit once, though the search reads a row about a dozen times."""
    size = float(problem["B"] * problem["V"])
    return 4.0 * size, 4.0 * size


def _shared_bytes(p: Mapping[str, Any]) -> int:
    return 4 * int(p["WORKGROUP"] * p["WAYS"]) + 16


SAMPLE = KernelFamily(
    name="sample",
    template="sample.comp.j2",
    dims=("V", "M", "B", "H"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256, 512, 1024), default=128),
        Choice("WAYS", (2, 4, 8, 16), default=8),
        ADDRESS,
        Constraint(
            "sums fit the shared memory", lambda p, d: _shared_bytes(p) <= d.max_shared_memory
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(V=1, M=32, B=1, H=1),
        Problem(V=50, M=64, B=7, H=3),
        Problem(V=127, M=127, B=13, H=2),
        Problem(V=4099, M=4128, B=1, H=1),
        Problem(V=129, M=160, B=37, H=5),
        Problem(V=1003, M=1024, B=12, H=8),
    ),
    default_problems=(Problem(V=65536, M=65536, B=1, H=1024),),
    problem_rule=lambda p: (
        f"M must be at least V={p['V']}, found {p['M']}" if p["M"] < p["V"] else None
    ),
)
