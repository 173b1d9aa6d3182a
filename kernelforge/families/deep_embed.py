"""deep_embed: RWKV-7a's factors of channel mix's hidden channels, from a row of each token."""

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
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, DType

RANK = 32
"""Side of the square matrix that a token's row holds."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("in_p", F32, ("T", "P")),
            Binding("rows", F32, ("T", "R")),
            Binding("param", F32, (RANK + 1, "F")),
            Binding("out_k", F32, ("T", "F"), "write"),
        ),
        push_constants=tuple(PushConstant(n) for n in ("F", "P", "R", "column", "rows_column")),
        grid=Grid(x=(CeilDiv("F", 4 * p["WORKGROUP"]),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Factors around one, as a trained s0 gives them."""
    t, f, p, r = (problem[d] for d in "TFPR")
    param = rng.standard_normal((RANK + 1, f), dtype=np.float32)
    param[:RANK] /= RANK
    param[RANK] = 1 + 0.1 * param[RANK]
    return {
        "in_p": rng.standard_normal((t, p), dtype=np.float32),
        "rows": rng.standard_normal((t, r), dtype=np.float32),
        "param": param,
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """K (((s E) s2) + s0), in float64."""
    t, f = problem["T"], problem["F"]
    column, rows_column = int(constants["column"]), int(constants["rows_column"])
    in_p, param = given["in_p"].astype(np.float64), given["param"].astype(np.float64)
    square = given["rows"][:, rows_column : rows_column + RANK * RANK].astype(np.float64)
    inner = np.einsum("ti,tij->tj", in_p[:, column:][:, :RANK], square.reshape(t, RANK, RANK))
    return {"out_k": in_p[:, :f] * (inner @ param[:RANK] + param[RANK])}


def constants(problem: Problem) -> dict[str, int | float]:
    """S and the matrix are in the last columns."""
    return {"column": problem["P"] - RANK, "rows_column": problem["R"] - RANK * RANK}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): k in and out, a matrix for each token, the parameters once."""
    t, f = problem["T"], problem["F"]
    flops = 2.0 * t * RANK * (RANK + f) + 2.0 * t * f
    return flops, 4.0 * (t * (2 * f + RANK + RANK * RANK) + (RANK + 1) * f)


def refuses(problem: Problem) -> str | None:
    """Everything is moved in vectors of four, and the columns must be there."""
    for name in "FPR":
        if problem[name] % 4:
            return f"{name} must be a multiple of 4, found {problem[name]}"
    if problem["P"] < max(problem["F"], RANK) or problem["R"] < RANK * RANK:
        return f"P must be F or more, and at least {RANK}; R at least {RANK * RANK}"
    return None


DEEP_EMBED = KernelFamily(
    name="deep_embed",
    template="deep_embed.comp.j2",
    dims=("T", "F", "P", "R"),
    precisions=(F32,),
    space=Space(Choice("WORKGROUP", (8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=constants,
    corner_problems=(
        Problem(T=1, F=32, P=64, R=1024),
        Problem(T=5, F=324, P=388, R=3072),
        Problem(T=1, F=2044, P=2052, R=1024),
        Problem(T=37, F=4, P=32, R=1024),
        Problem(T=7, F=252, P=260, R=1036),
        Problem(T=3, F=20, P=32, R=1028),
    ),
    default_problems=tuple(Problem(T=t, F=3072, P=3104, R=12288) for t in (1, 256)),
    problem_rule=refuses,
    tolerance=4.0,
)
