"""rosa_read: turns ROSA's symbols into what each channel gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.rosa import NO_MATCH
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("symbols", U32, ("T", "S")),
            Binding("values", F32, (3, "S", "Q")),
            Binding("out_x", F32, ("T", "S", "Q"), "readwrite"),
        ),
        push_constants=(PushConstant("S"), PushConstant("Q"), PushConstant("add")),
        grid=Grid(x=(CeilDiv("S", p["WORKGROUP"]), CeilDiv("Q")), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Random symbols, about one in six without a match."""
    t, s, q = (problem[d] for d in "TSQ")
    symbols = rng.integers(0, 2**q - (q == 32), (t, s), dtype=np.uint32)
    symbols[rng.random((t, s)) < 1 / 6] = NO_MATCH
    return {
        "symbols": symbols,
        "values": rng.standard_normal((3, s, q), dtype=np.float32),
        "out_x": rng.standard_normal((t, s, q), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The value of a set bit, of a clear bit or of no match, added or not."""
    symbols = given["symbols"][:, :, None]
    is_set = symbols >> np.arange(problem["Q"], dtype=np.uint32) & np.uint32(1)
    of_set, of_clear, of_none = given["values"].astype(np.float64)
    value = np.where(symbols == NO_MATCH, of_none, np.where(is_set == 1, of_set, of_clear))
    return {"out_x": value + given["out_x"] if constants["add"] else value}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): symbols and values once, the output in and out."""
    t, s, q = (problem[d] for d in "TSQ")
    return float(t * s * q), 4.0 * (t * s + 3 * s * q + 2 * t * s * q)


ROSA_READ = KernelFamily(
    name="rosa_read",
    template="rosa_read.comp.j2",
    dims=("T", "S", "Q"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        ADDRESS,
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"add": 1},
    corner_problems=(
        Problem(T=1, S=1, Q=1),
        Problem(T=3, S=67, Q=4),
        Problem(T=5, S=130, Q=1),
        Problem(T=1, S=2053, Q=1),
        Problem(T=37, S=1, Q=4),
        Problem(T=7, S=63, Q=1),
        Problem(T=3, S=65, Q=4),
        Problem(T=2, S=3, Q=32),
    ),
    default_problems=(
        Problem(T=1, S=768, Q=1),
        Problem(T=1, S=192, Q=4),
        Problem(T=256, S=768, Q=1),
    ),
)
