"""embedding: gathers rows of a table by token, widened to float."""

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
from kernelforge_runtime.dtypes import BF16, F16, F32, U32, DType, decode, encode


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    per_word = 32 // precision.bits
    return Signature(
        bindings=(
            Binding("table", precision, ("V", "C")),
            Binding("token", U32, ("T",)),
            Binding("out_x", F32, ("T", "C"), "write"),
        ),
        push_constants=(PushConstant("C"), PushConstant("V"), PushConstant("first")),
        grid=Grid(x=(CeilDiv("C", p["WORKGROUP"] * per_word),), y=(CeilDiv("T"),)),
        workgroup=p["WORKGROUP"],
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Tokens anywhere in the table, the first and the last among them."""
    v, c, t = (problem[d] for d in "VCT")
    token = rng.integers(0, v, t).astype(np.uint32)
    token[0], token[-1] = 0, v - 1
    table = rng.standard_normal((v, c), dtype=np.float32)
    return {"table": encode(table, precision), "token": token}


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """Plain indexing."""
    return {"out_x": decode(given["table"][given["token"]], precision)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): the rows that are used, read and written."""
    size = problem["T"] * problem["C"]
    return 0.0, size * (precision.bits / 8 + 4)


EMBEDDING = KernelFamily(
    name="embedding",
    template="embedding.comp.j2",
    dims=("T", "C", "V"),
    precisions=(F16, BF16, F32),
    space=Space(Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64), ADDRESS),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    constants=lambda problem: {"first": 0},
    corner_problems=(Problem(T=1, C=32, V=1), Problem(T=7, C=96, V=50)),
    default_problems=(Problem(T=1, C=768, V=65536),),
    problem_rule=lambda p: f"C must be a multiple of 32, found {p['C']}" if p["C"] % 32 else None,
)
