"""rwkv7_gates: decay, rate, value mix and key changes between RWKV-7's projections and WKV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge.traits import goose
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
            Binding("proj", F32, ("T", "P")),
            Binding("lora", F32, ("T", 4, "H", "N")),
            Binding("param", F32, (5, "H", "N")),
            Binding("v_first", F32, ("T", "H", "N"), "readwrite"),
            Binding("out_s", F32, (6, "T", "H", "N"), "write"),
        ),
        push_constants=tuple(PushConstant(n) for n in ("T", "H", "N", "P", "first")),
        grid=Grid(x=(CeilDiv("H"),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Projections, LoRA outputs and parameters of a trained model's size."""
    t, h, n, p = (problem[d] for d in "THNP")
    param = rng.standard_normal((5, h, n), dtype=np.float32)
    param[0] -= 3
    return {
        "proj": rng.standard_normal((t, p), dtype=np.float32),
        "lora": rng.standard_normal((t, 4, h, n), dtype=np.float32),
        "param": param,
        "v_first": rng.standard_normal((t, h, n), dtype=np.float32),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """See `kernelforge.traits.goose.gates`."""
    out, v_first = goose.gates(
        given["proj"], given["lora"], given["param"], given["v_first"], bool(constants["first"])
    )
    return {"out_s": out, "v_first": v_first}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): seven vectors in, eight out."""
    t, size = problem["T"], problem["H"] * problem["N"]
    return 30.0 * t * size, 4.0 * (14 * t * size + 5 * size)


RWKV7_GATES = KernelFamily(
    name="rwkv7_gates",
    template="rwkv7_gates.comp.j2",
    dims=("T", "H", "N", "P"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"first": problem["T"] % 2},  # both branches get verified
    corner_problems=(
        Problem(T=1, H=1, N=64, P=192),
        Problem(T=6, H=3, N=64, P=704),
        Problem(T=1, H=31, N=64, P=5956),
        Problem(T=37, H=1, N=31, P=97),
        Problem(T=3, H=5, N=65, P=980),
        Problem(T=4, H=2, N=16, P=128),
    ),
    default_problems=(Problem(T=1, H=12, N=64, P=2592), Problem(T=256, H=12, N=64, P=2592)),
    problem_rule=lambda p: (
        f"P must be at least 3 H N, found {p['P']}" if p["P"] < 3 * p["H"] * p["N"] else None
    ),
)
