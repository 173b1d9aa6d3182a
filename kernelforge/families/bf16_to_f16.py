"""bf16_to_f16: rounds weights where they lie, so that a host that loads them only has to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Choice, Space
from kernelforge.traits.choices import ADDRESS, WORD, WORD_BY_ADDRESS, addressing, word_features
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import BF16, F16, U32, DType, decode, encode

BEYOND = 0x4780
"""Bits of 65536, the least bfloat16 number that is too large."""
_SIGN = np.uint16(0x8000)


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    return Signature(
        bindings=(Binding("weights", U32, ("N", 4), "readwrite"),),
        push_constants=(PushConstant("N"),),
        grid=Grid(x=(CeilDiv("N", p["WORKGROUP"] * p["QUADS"]),)),
        workgroup=p["WORKGROUP"],
        features=word_features(p),
        addressing=addressing(p),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """A half of them weights as models have them, the others any number below 65536."""
    size = 8 * problem["N"]
    usual = encode(0.02 * rng.standard_normal(size, dtype=np.float32), BF16)
    any_size = rng.integers(0, BEYOND, size, dtype=np.uint16)
    bits = np.where(rng.random(size) < 0.5, usual, any_size)
    return {
        "weights": (bits ^ rng.choice((_SIGN, np.uint16(0)), size)).view(np.uint32).reshape(-1, 4)
    }


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """To the nearest, on a tie to even: IEEE 754-2019, 4.3.1; bit for bit."""
    exact = decode(given["weights"].view(np.uint16), BF16)
    return {"weights": exact.astype(np.float16).view(np.uint32)}


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): read and written once."""
    return 0.0, 32.0 * problem["N"]


BF16_TO_F16 = KernelFamily(
    name="bf16_to_f16",
    template="bf16_to_f16.comp.j2",
    dims=("N",),
    precisions=(F16,),
    space=Space(
        Choice("WORKGROUP", (4, 8, 16, 32, 64, 128, 256), default=64),
        Choice("QUADS", (1, 2, 4, 8), default=1),
        WORD,
        ADDRESS,
        WORD_BY_ADDRESS,
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=tuple(
        Problem(N=quads) for quads in (1, 2, 7, 61, 63, 64, 65, 255, 1025, 7079, 16_384)
    ),
    default_problems=(Problem(N=1 << 16), Problem(N=1 << 19)),
)
