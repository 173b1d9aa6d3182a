"""argmax: the index of the largest logit: greedy choice without reading logits back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge_runtime.abi.grid import Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("V",)),
            Binding("out_token", U32, (1,), "write"),
        ),
        push_constants=(PushConstant("V"),),
        grid=Grid(),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Logits with a tie at the top: the lower index must win."""
    logits = rng.standard_normal(problem["V"], dtype=np.float32)
    high = rng.integers(0, problem["V"], 2)
    logits[high] = np.float32(9)
    return {"in_x": logits}


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """NumPy's argmax, which also takes the first of equals."""
    return {"out_token": np.array([np.argmax(given["in_x"])], np.uint32)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every logit once."""
    return float(problem["V"]), 4.0 * problem["V"]


ARGMAX = KernelFamily(
    name="argmax",
    template="argmax.comp.j2",
    dims=("V",),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256, 512, 1024), default=128),
        Choice("VEC", (1, 4), default=4),
        ADDRESS,
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=tuple(Problem(V=v) for v in (1, 50, 127, 129, 4099, 1003)),
    default_problems=(Problem(V=65536),),
)
