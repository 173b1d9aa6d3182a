"""gemv: matrix times few vectors with routed inputs; all of decode's matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.family import Arrays, KernelFamily
from kernelforge.space import Space
from kernelforge.traits.choices import (
    activation_type,
    addressing,
    random_route,
    refuses_matrices,
)
from kernelforge.traits.products import routed_product
from kernelforge.traits.row_products import (
    matters,
    row_product_features,
    row_product_grid,
    row_product_space,
    row_product_subgroup,
)
from kernelforge.weight_layouts import layout_name
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.route import ROUTE_ROWS
from kernelforge_runtime.abi.signature import Binding, PushConstant, Signature
from kernelforge_runtime.dtypes import (
    BF16,
    F16,
    F32,
    NF4,
    Q8,
    QUANTIZED,
    U32,
    DType,
    decode,
    encode,
)
from kernelforge_runtime.quantize import BLOCK, K_MULTIPLE, Quantized, dequantize, quantize


def signature(precision: DType, p: Mapping[str, Any]) -> Signature:
    """Bindings, grid and workgroup of one variant."""
    scale = (Binding("scale", U32, ("M", f"K/{K_MULTIPLE}")),) if precision in QUANTIZED else ()
    return Signature(
        bindings=(
            Binding("weight", precision, ("M", "K"), layout=layout_name(p["LAYOUT"], precision)),
            *scale,
            Binding("in_x", activation_type(p, "X"), ("S", "T", "K")),
            Binding("route", U32, (f"M/{ROUTE_ROWS}", 4)),
            Binding("aux", F32, ("M",)),
            Binding("out_y", activation_type(p, "Y"), ("T", "M"), "readwrite"),
        ),
        push_constants=(PushConstant("M"), PushConstant("K"), PushConstant("T")),
        grid=row_product_grid(p),
        workgroup=p["WORKGROUP"],
        subgroup=row_product_subgroup(p),
        addressing=addressing(p),
        features=tuple(sorted(row_product_features(p))),
        fixed=(("X", p["X"]), ("Y", p["Y"])),
        windowed=("weight",) if p["ADDRESS"] == 2 else (),
    )


def inputs(problem: Problem, precision: DType, rng: np.random.Generator) -> Arrays:
    """Weights of a trained model's size, S inputs of T tokens, a random route per 32 rows."""
    m, k, s, t = (problem[d] for d in "MKST")
    x_type, y_type = (activation_type(problem, d) for d in "XY")
    weight = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return {
        **encoded(weight, precision),
        "in_x": rng.standard_normal((s, t, k), dtype=np.float32).astype(x_type.np),
        "route": random_route(m, t, s, t * k, k, rng),
        "aux": rng.standard_normal(m, dtype=np.float32),
        "out_y": rng.standard_normal((t, m), dtype=np.float32).astype(y_type.np),
    }


def encoded(weight: NDArray[np.float32], precision: DType) -> Arrays:
    """The bindings that hold these weights [M, K]; half a word may be spare."""
    if precision not in QUANTIZED:
        return {"weight": encode(weight, precision)}
    k = weight.shape[1]
    whole = quantize(np.pad(weight, ((0, 0), (0, -k % K_MULTIPLE))), precision)
    words = np.ascontiguousarray(whole.weight[:, : k * precision.bits // 32])
    return {"weight": words, "scale": whole.scale}


def decoded(given: Mapping[str, NDArray[Any]], precision: DType) -> NDArray[np.float32]:
    """The weights [M, K] that these bindings hold."""
    weight = given["weight"]
    if precision not in QUANTIZED:
        return decode(weight, precision)
    block = BLOCK * precision.bits // 32
    spare = 2 * block * given["scale"].shape[1] - weight.shape[1]
    whole = Quantized(np.pad(weight, ((0, 0), (0, spare))), given["scale"])
    return dequantize(whole, precision)[:, : weight.shape[1] // block * BLOCK]


def oracle(
    problem: Problem,
    precision: DType,
    given: Mapping[str, NDArray[Any]],
    constants: Mapping[str, float],
) -> Arrays:
    """The product in float64, block by block, with each block's epilogue."""
    return routed_product(problem, decoded(given, precision), given)


def cost(problem: Problem, precision: DType) -> tuple[float, float]:
    """(flops, bytes): every operand once, scales included."""
    m, k, s, t, x, y = (problem[d] for d in "MKSTXY")
    scales = 32 * -(-k // K_MULTIPLE) if precision in QUANTIZED else 0
    weights = m * (k * precision.bits + scales)
    return 2.0 * m * k * t, (weights + t * (k * s * x + 2 * m * y)) / 8


GEMV = KernelFamily(
    name="gemv",
    template="gemv.comp.j2",
    dims=("M", "K", "S", "T", "X", "Y"),
    precisions=(F16, BF16, F32, Q8, NF4),
    space=Space(
        *row_product_space(("direct", "staged", "sparse"), rows=2, own_rows=True),
    ),
    signature=signature,
    inputs=inputs,
    oracle=oracle,
    cost=cost,
    corner_problems=(
        Problem(M=32, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=160, S=3, T=1, X=16, Y=16),
        Problem(M=160, K=448, S=2, T=3, X=32, Y=16),
        Problem(M=224, K=352, S=1, T=5, X=16, Y=32),
        Problem(M=32, K=2080, S=1, T=1, X=32, Y=32),
        Problem(M=992, K=32, S=1, T=1, X=32, Y=32),
        Problem(M=96, K=992, S=3, T=7, X=32, Y=32),
        Problem(M=160, K=1056, S=2, T=2, X=32, Y=32),
        Problem(M=64, K=832, S=2, T=8, X=32, Y=32),
    ),
    default_problems=(
        *(
            Problem(M=768, K=3072, S=1, T=t, X=x, Y=y)
            for t in (1, 4)
            for x, y in ((32, 32), (16, 32), (32, 16), (16, 16))
        ),
        Problem(M=4096, K=1024, S=1, T=1, X=32, Y=32),
    ),
    defaults={"S": 1, "T": 1, "X": 32, "Y": 32},
    problem_rule=refuses_matrices,
    matters=matters,
)
