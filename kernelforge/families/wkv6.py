"""wkv6: the recurrence of RWKV-5 and RWKV-6 over the tokens of each segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernelforge.family import KernelFamily
from kernelforge.space import Choice, Constraint, Flag, Space
from kernelforge.traits.recurrences import (
    WKV6_BINDINGS,
    wkv6_cost,
    wkv6_inputs,
    wkv6_oracle,
    wkv6_refuses,
)
from kernelforge.traits.state_rows import MAX_STATE_FLOATS, kept, row_constraints, state_signature
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return state_signature(WKV6_BINDINGS, "THPD", p)


WKV6 = KernelFamily(
    name="wkv6",
    template="wkv6.comp.j2",
    dims=("T", "H", "N", "B", "P", "D"),
    precisions=(F32,),
    space=Space(
        Choice("HEAD", (8, 16, 32, 64, 128), default=64),
        # Largest first: the default of a smaller head is then the widest workgroup that divides it.
        Choice("WORKGROUP", (128, 64, 32, 16, 8, 4), default=64),
        Choice("LANES", (1, 2, 4, 8, 16), default=1),
        Choice("ROWS", (1, 2, 4, 8, 16), default=1),
        Choice("STAGE", (0, 1, 4, 16), default=0),
        # llvmpipe compiles in one second with addresses what takes it 16 through descriptors.
        Flag("ADDRESS", default=True, needs="buffer_device_address"),
        *row_constraints(),
        Constraint(
            "the state fits the registers",
            lambda p, d: kept(p) <= (MAX_STATE_FLOATS if p["ADDRESS"] and not p["STAGE"] else 64),
        ),
        # Checked access multiplies what llvmpipe takes to compile, and more beside barriers: 16
        # CPU seconds for one row of a head of 64. So only where there is no other way.
        Constraint(
            "through descriptors no stage, and many registers only on devices without addresses",
            lambda p, d: (
                p["ADDRESS"]
                or (
                    p["STAGE"] == 0 and (kept(p) <= 16 or "buffer_device_address" not in d.features)
                )
            ),
        ),
        Constraint("the stage fits 16 KiB", lambda p, d: p["STAGE"] * p["HEAD"] <= 1024),
    ),
    signature=signature,
    inputs=wkv6_inputs,
    oracle=wkv6_oracle,
    cost=wkv6_cost,
    corner_problems=(
        Problem(T=1, H=1, N=64, B=1, P=192, D=1),
        Problem(T=17, H=3, N=64, B=3, P=596, D=17),
        Problem(T=9, H=1, N=64, B=1, P=256, D=9),
        Problem(T=2, H=1, N=32, B=5, P=96, D=1),
        Problem(T=5, H=2, N=16, B=2, P=128, D=5),
        Problem(T=4, H=2, N=32, B=4, P=192, D=1),
        Problem(T=3, H=5, N=8, B=1, P=128, D=3),
    ),
    default_problems=(
        Problem(T=1, H=12, N=64, B=1, P=3072, D=1),
        Problem(T=256, H=12, N=64, B=1, P=3072, D=256),
        *(Problem(T=1, H=8, N=n, B=1, P=32 * n, D=1) for n in (8, 16, 32)),
    ),
    tolerance=4.0,
    problem_rule=wkv6_refuses,
)
