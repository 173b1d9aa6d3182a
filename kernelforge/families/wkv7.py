"""wkv7: RWKV-7's recurrence over the tokens of each segment; decode is segments of one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, Space
from kernelforge.traits.choices import ADDRESS, WORD, WORD_BY_ADDRESS
from kernelforge.traits.recurrences import (
    WKV7_BINDINGS,
    wkv7_cost,
    wkv7_inputs,
    wkv7_oracle,
    wkv7_refuses,
)
from kernelforge.traits.state_rows import MAX_STATE_FLOATS, kept, row_constraints, state_signature
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return state_signature(WKV7_BINDINGS, "TH", p)


WKV7 = KernelFamily(
    name="wkv7",
    template="wkv7.comp.j2",
    dims=("T", "H", "N", "B"),
    precisions=(F32,),
    space=Space(
        Choice("HEAD", (16, 32, 64, 128), default=64),
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128), default=64),
        Choice("LANES", (1, 2, 4, 8, 16), default=1),
        Choice("ROWS", (1, 2, 4, 8, 16), default=1),
        Choice("STAGE", (0, 1, 4, 16), default=0),
        ADDRESS,
        WORD,
        *row_constraints(),
        WORD_BY_ADDRESS,
        Constraint(
            "the stage fits the shared memory",
            lambda p, d: 20 * p["STAGE"] * p["HEAD"] <= d.max_shared_memory,
        ),
        # Beside barriers checked access multiplies what llvmpipe takes to compile.
        Constraint("through descriptors no stage", lambda p, d: p["ADDRESS"] or not p["STAGE"]),
        # Checked access through descriptors doubles the code, and the compile time more; so do
        # barriers.
        Constraint(
            "the state fits the registers",
            lambda p, d: (
                kept(p) <= MAX_STATE_FLOATS // (4 if p["STAGE"] else 1 if p["ADDRESS"] else 2)
            ),
        ),
    ),
    signature=signature,
    inputs=wkv7_inputs,
    oracle=wkv7_oracle,
    cost=wkv7_cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1),
        Problem(T=17, H=3, N=64, B=3),
        Problem(T=9, H=1, N=64, B=1),
        Problem(T=2, H=1, N=32, B=5),
        Problem(T=5, H=2, N=16, B=2),
        Problem(T=31, H=1, N=16, B=1),
        Problem(T=7, H=31, N=16, B=7),
        Problem(T=4, H=2, N=32, B=4),
    ),
    default_problems=(
        Problem(T=1, H=12, N=64, B=1),
        Problem(T=256, H=12, N=64, B=1),
        *(Problem(T=1, H=8, N=n, B=1) for n in (16, 32)),
    ),
    tolerance=4.0,
    problem_rule=wkv7_refuses,
)
