"""wkv6_chunk_coop: RWKV-5's and 6's recurrence in matrix form, with cooperative matrices.

Its products with the state are of float16 pairs, which keeps wkv6_chunk's own tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.traits.recurrences import (
    WKV6_BINDINGS,
    wkv6_cost,
    wkv6_inputs,
    wkv6_oracle,
    wkv6_refuses,
)
from kernelforge.traits.state_matrices import MATRIX_EXTENSION, matrix_signature, matrix_space
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return matrix_signature(WKV6_BINDINGS, "THPD", p)


WKV6_CHUNK_COOP = KernelFamily(
    name="wkv6_chunk_coop",
    template="wkv6_chunk_coop.comp.j2",
    dims=("T", "H", "N", "B", "P", "D"),
    precisions=(F32,),
    space=matrix_space(lefts=1, rights=1),
    signature=signature,
    inputs=wkv6_inputs,
    oracle=wkv6_oracle,
    cost=wkv6_cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1, P=192, D=1),
        Problem(T=75, H=3, N=64, B=3, P=596, D=75),
        Problem(T=37, H=2, N=16, B=2, P=128, D=37),
        Problem(T=14, H=2, N=32, B=4, P=192, D=1),
        Problem(T=13, H=5, N=16, B=1, P=256, D=13),
    ),
    default_problems=(
        Problem(T=256, H=12, N=64, B=1, P=3072, D=256),
        *(Problem(T=256, H=8, N=n, B=1, P=32 * n, D=256) for n in (16, 32)),
    ),
    tolerance=4.0,
    requires=(MATRIX_EXTENSION,),
    problem_rule=wkv6_refuses,
)
