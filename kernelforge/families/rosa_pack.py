"""rosa_pack: appends the symbols of a step's tokens to the packed histories of their sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, ProblemConstraint, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge.traits.segments import filled_segments, random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.rosa import SYMBOL_BITS, symbols_per_word
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant; symbols of 32 bits are given as they are."""
    whole = p["Q"] == 32
    return Signature(
        bindings=(
            Binding("in_x", U32, ("T", "R", "S"))
            if whole
            else Binding("in_x", F32, ("T", "R", "S", "Q")),
            Binding("segment", U32, ("B", 4)),
            Binding("history", U32, ("B", "R", "S", "W"), "readwrite"),
        ),
        push_constants=tuple(PushConstant(name) for name in "RSW"),
        grid=Grid(
            x=(CeilDiv("S", p["WORKGROUP"]), CeilDiv("R")),
            y=(CeilDiv("B"),),
            z=(CeilDiv("T", symbols_per_word(p["Q"])),),
        ),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        fixed=(("Q", p["Q"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Random channels with some zeros of both signs; histories that are nearly full."""
    t, r, s, w, b, q = (problem[d] for d in "TRSWBQ")
    if q == 32:
        x = rng.integers(0, 2**32, (t, r, s), dtype=np.uint32)
    else:
        channels = rng.standard_normal((t, r, s, q)).astype(np.float32)
        channels[rng.random(channels.shape) < 0.05] = 0.0
        x = np.copysign(channels, rng.standard_normal(channels.shape)).astype(np.float32)
    segment = random_segments(b, t, rng)
    room = w * symbols_per_word(q) - segment[:, 1].astype(np.int64)
    segment[:, 3] = np.maximum(room - rng.integers(0, 3, b), 0)
    return {
        "in_x": x,
        "segment": segment,
        "history": rng.integers(0, 2**32, (b, r, s, w), dtype=np.uint32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Token by token: clears what lies above the new symbol in its word, then sets the symbol."""
    q = problem["Q"]
    per = symbols_per_word(q)
    symbols = given["in_x"].astype(np.uint64)
    if q < 32:
        symbols = ((given["in_x"] > 0) << np.arange(q)).sum(axis=-1).astype(np.uint64)
    history = given["history"].astype(np.uint64)
    for index, first, count, slot in filled_segments(given["segment"]):
        position = int(given["segment"][index, 3])
        for t in range(count):
            word, place = divmod(position + t, per)
            below = history[slot, :, :, word] & np.uint64((1 << place * q) - 1)
            history[slot, :, :, word] = below | symbols[first + t] << np.uint64(place * q)
    return {"history": history.astype(np.uint32)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every channel once, and a word in and out for each sequence and stream."""
    t, r, s, b, q = (problem[d] for d in "TRSBQ")
    channels = 1 if q == 32 else q
    touched = max(b, t * q / 32)
    return 0.0, 4.0 * r * s * (t * channels + 2 * touched)


def refuses(problem: Problem) -> str | None:
    """Symbols have 1, 4 or 32 bits, and a history has room for the step."""
    if problem["Q"] not in SYMBOL_BITS:
        return f"symbols have one of {SYMBOL_BITS} bits, found {problem['Q']}"
    room = problem["W"] * symbols_per_word(problem["Q"])
    return None if problem["T"] <= room else f"{problem['T']} tokens, {room} fit in W words"


ROSA_PACK = KernelFamily(
    name="rosa_pack",
    template="rosa_pack.comp.j2",
    dims=("T", "S", "R", "W", "B", "Q"),
    precisions=(F32,),
    space=Space(
        Choice("Q", SYMBOL_BITS, default=1),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        ADDRESS,
        ProblemConstraint(
            "compiled for this symbol size", lambda p, d, problem: p["Q"] == problem["Q"]
        ),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(T=1, S=5, R=3, W=2, B=1, Q=1),
        Problem(T=77, S=3, R=1, W=4, B=3, Q=1),
        Problem(T=33, S=70, R=3, W=9, B=4, Q=4),
        Problem(T=7, S=1, R=1, W=9, B=2, Q=32),
        Problem(T=31, S=65, R=3, W=2, B=1, Q=1),
        Problem(T=37, S=1, R=1, W=37, B=7, Q=1),
        Problem(T=5, S=2, R=3, W=5, B=1, Q=32),
    ),
    default_problems=(
        Problem(T=1, S=768, R=3, W=128, B=1, Q=1),
        Problem(T=256, S=768, R=3, W=128, B=1, Q=1),
        Problem(T=1, S=192, R=3, W=512, B=1, Q=4),
        Problem(T=256, S=192, R=3, W=512, B=1, Q=4),
        Problem(T=1, S=1, R=1, W=4096, B=1, Q=32),
    ),
    problem_rule=refuses,
)
