"""copy: moves floats; carries the token-shift state of a chunk over to the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.choices import ADDRESS, addressing
from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(Binding("in_x", F32, ("E",)), Binding("out_y", F32, ("E",), "write")),
        push_constants=(PushConstant("E"),),
        grid=Grid(x=(CeilDiv("E", 4 * p["WORKGROUP"]),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Anything."""
    return {"in_x": rng.standard_normal(problem["E"], dtype=np.float32)}


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The same again."""
    return {"out_y": given["in_x"]}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): read and written once."""
    return 0.0, 8.0 * problem["E"]


COPY = KernelFamily(
    name="copy",
    template="copy.comp.j2",
    dims=("E",),
    precisions=(F32,),
    space=Space(Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(Problem(E=4), Problem(E=1000)),
    default_problems=(Problem(E=18432),),
    problem_rule=lambda p: f"E must be a multiple of 4, found {p['E']}" if p["E"] % 4 else None,
)
