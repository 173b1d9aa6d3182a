"""Kernels that do one thing only, as families: read, copy, multiply-add.

Not offered for tuning; `baseline` uses them to find out what a device can do at best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Flag, Space
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import F32, U32, DType

WORD_BYTES = 16
FACTOR = 0.5


def _addressed(params: Mapping[str, Any]) -> dict[str, Any]:
    workgroup = params["WORKGROUP"]
    mode = "address" if params.get("ADDRESS") else "descriptor"
    grid = Grid(x=(CeilDiv("G", workgroup),))
    return {"grid": grid, "workgroup": workgroup, "addressing": mode}


def _read_signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    return Signature(
        bindings=(
            Binding("source", U32, ("N", 4)),
            Binding("result", U32, ("G",), "write"),
        ),
        push_constants=(PushConstant("N"), PushConstant("G"), PushConstant("L")),
        **_addressed(params),
    )


def _copy_signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    return Signature(
        bindings=(
            Binding("source", U32, ("N", 4)),
            Binding("result", U32, ("N", 4), "write"),
        ),
        push_constants=(PushConstant("N"), PushConstant("G"), PushConstant("L")),
        **_addressed(params),
    )


def _fma_signature(precision: DType, params: Mapping[str, Any]) -> Signature:
    return Signature(
        bindings=(Binding("source", F32, ("G",)), Binding("result", F32, ("G",), "write")),
        push_constants=(PushConstant("G"), PushConstant("K"), PushConstant("factor", F32)),
        **_addressed(params),
    )


def _words(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    return {"source": rng.integers(0, 2**32, (problem["N"], 4), dtype=np.uint32)}


def _values(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    return {"source": rng.uniform(1.0, 2.0, problem["G"]).astype(np.float32)}


def _xor(
    problem: Problem,
    precision: DType,
    arrays: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    lanes, chunks = problem["L"], problem["G"] // problem["L"]
    words = np.bitwise_xor.reduce(arrays["source"], axis=1)
    length = -(-len(words) // chunks)
    words = np.pad(words, (0, chunks * length - len(words))).reshape(chunks, length)
    words = np.pad(words, ((0, 0), (0, -length % lanes))).reshape(chunks, -1, lanes)
    return {"result": np.bitwise_xor.reduce(words, axis=1).reshape(-1)}


def _same(
    problem: Problem,
    precision: DType,
    arrays: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    return {"result": arrays["source"]}


_MEMORY_SPACE = Space(
    Choice("WORKGROUP", (64, 256), default=64),
    Choice("UNROLL", (1, 4), default=4),
    Flag("ADDRESS", needs="buffer_device_address"),
)

READ = KernelFamily(
    name="ceiling_read",
    template="ceiling_read.comp.j2",
    dims=("N", "G", "L"),
    precisions=(U32,),
    space=_MEMORY_SPACE,
    signature=_read_signature,
    inputs=_words,
    oracle=_xor,
    cost=lambda problem, precision: (0.0, float(WORD_BYTES * problem["N"])),
    corner_problems=(Problem(N=1, G=8, L=8), Problem(N=1001, G=40, L=8)),
)

COPY = KernelFamily(
    name="ceiling_copy",
    template="ceiling_copy.comp.j2",
    dims=("N", "G", "L"),
    precisions=(U32,),
    space=_MEMORY_SPACE,
    signature=_copy_signature,
    inputs=_words,
    oracle=_same,
    cost=lambda problem, precision: (0.0, 2.0 * WORD_BYTES * problem["N"]),
    corner_problems=(Problem(N=1, G=8, L=8), Problem(N=1001, G=40, L=8)),
)

FMA = KernelFamily(
    name="ceiling_fma",
    template="ceiling_fma.comp.j2",
    dims=("G", "K"),
    precisions=(F32,),
    space=Space(
        Choice("WORKGROUP", (64, 256), default=64),
        Choice("CHAINS", (4, 8, 16), default=8),
        Flag("FUSED", default=True),
    ),
    signature=_fma_signature,
    inputs=_values,
    oracle=_same,
    cost=lambda problem, precision: (2.0 * problem["G"] * problem["K"], 8.0 * problem["G"]),
    constants=lambda problem: {"factor": FACTOR},
    corner_problems=(Problem(G=1, K=1024), Problem(G=257, K=1024)),
)
