"""wkv7_chunk_coop: RWKV-7's recurrence in matrix form with cooperative matrices; wkv7's buffers.

Its products with the state are of float16 pairs, which keeps wkv7_chunk's own tolerance: at the
corner problems the largest error is 1.2e-5 where 7e-4 is allowed. Without the second halves the
states are off by 24 to 51 times what is allowed (llvmpipe of Mesa 26.1, 2026-11-21).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.traits.recurrences import (
    WKV7_BINDINGS,
    wkv7_cost,
    wkv7_inputs,
    wkv7_oracle,
    wkv7_refuses,
)
from kernelforge.traits.state_matrices import MATRIX_EXTENSION, matrix_signature, matrix_space
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return matrix_signature(WKV7_BINDINGS, "TH", p)


WKV7_CHUNK_COOP = KernelFamily(
    name="wkv7_chunk_coop",
    template="wkv7_chunk_coop.comp.j2",
    dims=("T", "H", "N", "B"),
    precisions=(F32,),
    space=matrix_space(lefts=2, rights=2),
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
    requires=(MATRIX_EXTENSION,),
    problem_rule=wkv7_refuses,
)
