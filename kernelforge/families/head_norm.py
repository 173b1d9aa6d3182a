"""head_norm: group norm over each head of a recurrence's output, times a gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge.traits.choices import (
    ADDRESS,
    addressing,
    reduction_features,
    reduction_subgroup,
    workgroup_reduction,
)
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_y", F32, ("T", "H", "N")),
            Binding("in_p", F32, ("T", "P")),
            Binding("param", F32, (2, "H", "N")),
            Binding("out_y", F32, ("T", "H", "N"), "write"),
        ),
        push_constants=(
            *(PushConstant(n) for n in ("H", "N", "P", "gated", "column")),
            PushConstant("eps", F32),
        ),
        grid=Grid(x=(CeilDiv("H"),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Heads with a mean of their own; the weight around one."""
    t, h, n, p = (problem[d] for d in "THNP")
    param = rng.standard_normal((2, h, n), dtype=np.float32)
    param[0] = 1 + 0.1 * param[0]
    mean = rng.standard_normal((t, h, 1), dtype=np.float32)
    return {
        "in_y": rng.standard_normal((t, h, n), dtype=np.float32) * 2 + mean,
        "in_p": rng.standard_normal((t, p), dtype=np.float32),
        "param": param,
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Biased variance over each head, in float64."""
    y = given["in_y"].astype(np.float64)
    weight, bias = given["param"].astype(np.float64)
    centred = y - y.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + constants["eps"])
    out = normed * weight + bias
    if constants["gated"]:
        column = int(constants["column"])
        gate = given["in_p"][:, column : column + problem["H"] * problem["N"]]
        out = out * gate.reshape(out.shape)
    return {"out_y": out}


def constants(problem: Problem) -> dict[str, int | float]:
    """The gate is in the last columns, where there are enough of them."""
    spare = problem["P"] - problem["H"] * problem["N"]
    return {"eps": 64e-5, "gated": int(spare >= 0), "column": max(spare, 0)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): y and the gate in, one output."""
    size = problem["T"] * problem["H"] * problem["N"]
    return 10.0 * size, 4.0 * 3 * size


HEAD_NORM = KernelFamily(
    name="head_norm",
    template="head_norm.comp.j2",
    dims=("T", "H", "N", "P"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=constants,
    corner_problems=(
        Problem(T=1, H=1, N=64, P=1),
        Problem(T=5, H=3, N=64, P=200),
        Problem(T=4, H=2, N=16, P=32),
        Problem(T=1, H=31, N=64, P=1984),
        Problem(T=37, H=1, N=31, P=33),
        Problem(T=2, H=5, N=65, P=325),
        Problem(T=3, H=2, N=128, P=600),
    ),
    default_problems=tuple(Problem(T=t, H=32, N=64, P=8192) for t in (1, 256)),
)
