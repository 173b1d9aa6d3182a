"""rwkv7_readout: group norm, bonus and gate between RWKV-7's recurrence and its output matrix."""

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
            Binding("in_y", F32, ("T", "H", "N")),
            Binding("in_s", F32, (6, "T", "H", "N")),
            Binding("lora", F32, ("T", 4, "H", "N")),
            Binding("param", F32, (3, "H", "N")),
            Binding("out_y", F32, ("T", "H", "N"), "write"),
        ),
        push_constants=(*(PushConstant(n) for n in "THN"), PushConstant("eps", F32)),
        grid=Grid(x=(CeilDiv("H"),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        subgroup=reduction_subgroup(p),
        addressing=addressing(p),
        features=reduction_features(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Random everything; the group norm's weight around one."""
    t, h, n = (problem[d] for d in "THN")
    param = rng.standard_normal((3, h, n), dtype=np.float32)
    param[1] = 1 + 0.1 * param[1]
    return {
        "in_y": rng.standard_normal((t, h, n), dtype=np.float32) * 2,
        "in_s": rng.standard_normal((6, t, h, n), dtype=np.float32),
        "lora": rng.standard_normal((t, 4, h, n), dtype=np.float32),
        "param": param,
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """See `kernelforge.traits.goose.readout`."""
    read = goose.readout(
        given["in_y"], given["in_s"], given["lora"], given["param"], constants["eps"]
    )
    return {"out_y": read}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): five vectors in, one out."""
    size = problem["T"] * problem["H"] * problem["N"]
    return 15.0 * size, 4.0 * 6 * size


RWKV7_READOUT = KernelFamily(
    name="rwkv7_readout",
    template="rwkv7_readout.comp.j2",
    dims=("T", "H", "N"),
    precisions=(F32,),
    space=Space(*workgroup_reduction(), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"eps": 64e-5},
    corner_problems=(
        Problem(T=1, H=1, N=64),
        Problem(T=5, H=3, N=64),
        Problem(T=1, H=31, N=64),
        Problem(T=37, H=1, N=31),
        Problem(T=3, H=5, N=65),
        Problem(T=4, H=2, N=16),
    ),
    default_problems=(Problem(T=1, H=12, N=64), Problem(T=256, H=12, N=64)),
    tolerance=4.0,
)
