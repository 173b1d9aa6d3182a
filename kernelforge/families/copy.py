"""copy: moves rows of states; takes the carries of a chunk over to the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import ADDRESS, addressing
from kernelforge.traits.segments import filled_segments, random_segments
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_x", F32, ("L", "B", "E")),
            Binding("segment", U32, ("B", 4)),
            Binding("out_y", F32, ("L", "B", "E"), "readwrite"),
        ),
        push_constants=(PushConstant("E"), PushConstant("stride")),
        grid=Grid(
            x=(CeilDiv("E", 4 * p["WORKGROUP"]),),
            y=(CeilDiv("B"),),
            z=(CeilDiv("L"),),
        ),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Anything; a third of the segments or more are padding."""
    size = tuple(problem[d] for d in "LBE")
    segment = random_segments(problem["B"], problem["B"], rng)
    return {
        "in_x": rng.standard_normal(size, dtype=np.float32),
        "segment": segment,
        "out_y": rng.standard_normal(size, dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The rows of the slots in use; the others stay."""
    entries, size, stride = problem["L"], problem["E"], int(constants["stride"])
    out = given["out_y"].copy()
    for _, _, _, slot in filled_segments(given["segment"]):
        for entry in range(entries):
            at = entry * stride + slot * size
            out.reshape(-1)[at : at + size] = given["in_x"].reshape(-1)[at : at + size]
    return {"out_y": out}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): read and written once."""
    return 0.0, 8.0 * problem["L"] * problem["B"] * problem["E"]


COPY = KernelFamily(
    name="copy",
    template="copy.comp.j2",
    dims=("L", "B", "E"),
    precisions=(F32,),
    space=Space(Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"stride": problem["B"] * problem["E"]},
    corner_problems=tuple(
        Problem(L=layers, B=b, E=e)
        for layers, b, e in (
            *((1, 1, 4), (3, 3, 1000), (1, 7, 252), (5, 2, 260), (1, 1, 4100), (37, 1, 4)),
            (2, 2, 32),
        )
    ),
    default_problems=(Problem(L=24, B=1, E=768), Problem(L=24, B=8, E=768)),
    problem_rule=lambda p: f"E must be a multiple of 4, found {p['E']}" if p["E"] % 4 else None,
)
