"""wkv7_chunk: RWKV-7's recurrence in matrix form, a chunk of tokens at a time; wkv7's buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Flag, Space
from kernelforge.traits.recurrences import (
    WKV7_BINDINGS,
    wkv7_cost,
    wkv7_inputs,
    wkv7_oracle,
    wkv7_refuses,
)
from kernelforge.traits.state_rows import chunk_constraints, state_signature
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return state_signature(WKV7_BINDINGS, "TH", p)


WKV7_CHUNK = KernelFamily(
    name="wkv7_chunk",
    template="wkv7_chunk.comp.j2",
    dims=("T", "H", "N", "B"),
    precisions=(F32,),
    space=Space(
        Choice("HEAD", (16, 32, 64, 128), default=64),
        Choice("CHUNK", (4, 8, 16, 32, 64), default=8),
        Choice("WORKGROUP", (256, 128, 64, 32, 16, 8, 4), default=64),
        Choice("LANES", (1, 2, 4, 8, 16), default=4),
        Choice("ROWS", (1, 2, 4, 8, 16), default=2),
        Flag("ADDRESS", default=True, needs="buffer_device_address"),
        *chunk_constraints(lefts=2, rights=2),
    ),
    signature=signature,
    inputs=wkv7_inputs,
    oracle=wkv7_oracle,
    cost=wkv7_cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1),
        Problem(T=75, H=3, N=64, B=3),
        Problem(T=2, H=1, N=32, B=5),
        Problem(T=63, H=1, N=64, B=1),
        Problem(T=65, H=1, N=64, B=2),
        Problem(T=37, H=2, N=16, B=2),
    ),
    default_problems=(
        Problem(T=256, H=12, N=64, B=1),
        *(Problem(T=256, H=8, N=n, B=1) for n in (16, 32)),
    ),
    tolerance=4.0,
    problem_rule=wkv7_refuses,
)
