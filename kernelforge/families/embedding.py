"""embedding: gathers rows of a table by token, in the width of the activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import (
    ADDRESS,
    activation_bits,
    activation_type,
    addressing,
    refuses_activations,
)
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F16, F32, U32, DType, decode, encode

NO_MATCH = 0xFFFFFFFF
"""The token of a row that is to be zeros, or to be left as it is where rows are added."""


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(
            Binding("table", precision, ("V", "C")),
            Binding("token", U32, ("T",)),
            Binding("out_x", activation_type(p), ("T", "C"), "readwrite"),
        ),
        push_constants=tuple(PushConstant(n) for n in ("C", "V", "first", "add")),
        grid=Grid(x=(CeilDiv("C", 4 * p["WORKGROUP"]),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
        fixed=(("X", p["X"]),),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Tokens anywhere in the table, its first and last row; of four or more, two are not in it."""
    v, c, t = (problem[d] for d in "VCT")
    token = rng.integers(0, v, t).astype(np.uint32)
    token[0], token[-1] = 0, v - 1
    if t >= 4:
        token[1], token[2] = NO_MATCH, v
    out = rng.standard_normal((t, c), dtype=np.float32)
    return {
        "table": encode(rng.standard_normal((v, c), dtype=np.float32), precision),
        "token": token,
        "out_x": encode(out, activation_type(problem)),
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Plain indexing; rows that are not of this page stay."""
    first, add = int(constants["first"]), constants["add"]
    token = given["token"].astype(np.int64)
    found = (token >= first) & (token < first + problem["V"])
    out = given["out_x"].astype(np.float64)
    if first == 0 and not add:
        out[token == NO_MATCH] = 0
    rows = decode(given["table"][token[found] - first], precision).astype(np.float64)
    out[found] = out[found] + rows if add else rows
    return {"out_x": out}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): the rows that are used, read and written."""
    size = problem["T"] * problem["C"]
    return 0.0, size * (precision.bits + problem["X"]) / 8


def refuses(problem: Problem) -> str | None:
    """Tables come padded to whole vectors of every width."""
    if problem["C"] % 32:
        return f"C must be a multiple of 32, found {problem['C']}"
    return refuses_activations(problem)


EMBEDDING = KernelFamily(
    name="embedding",
    template="embedding.comp.j2",
    dims=("T", "C", "V", "X"),
    precisions=(F16, BF16, F32),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS, *activation_bits()
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"first": 0, "add": 0},
    corner_problems=tuple(
        Problem(T=t, C=c, V=v, X=x)
        for x in (32, 16)
        for t, c, v in ((1, 32, 1), (2, 2080, 3), (37, 32, 127), (7, 96, 50))
    ),
    default_problems=tuple(Problem(T=1, C=768, V=65536, X=x) for x in (32, 16)),
    problem_rule=refuses,
)
