"""Matrices as the product families store them: plain floats, or blocks of 32 with a scale each.

Rows of the quantised formats are whole words of two scales; a last odd block of 32 leaves half of
its word unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.signature import Binding
from kernelforge_runtime.dtypes import QUANTIZED, U32, DType, decode, encode
from kernelforge_runtime.quantize import K_MULTIPLE, Quantized, dequantize, quantize

Arrays = dict[str, NDArray[Any]]


def weight_bindings(precision: DType, layout: str = "") -> tuple[Binding, ...]:
    """`weight` [M, K] and, for the formats that have one, `scale` [M, K/64] behind it.

    Args:
        precision: of the weights.
        layout: how `weight` lies in memory; scales are row-major.
    """
    weight = Binding("weight", precision, ("M", "K"), layout=layout)
    if precision not in QUANTIZED:
        return (weight,)
    return weight, Binding("scale", U32, ("M", f"K/{K_MULTIPLE}"))


def stored_weight(values: NDArray[np.float32], precision: DType) -> Arrays:
    """The arrays of `weight_bindings` for a matrix [M, K]; K is a multiple of 32."""
    if precision not in QUANTIZED:
        return {"weight": encode(values, precision)}
    k = values.shape[1]
    whole = np.pad(values, ((0, 0), (0, -k % K_MULTIPLE)))
    made = quantize(whole, precision)
    words = k * precision.bits // 32
    return {"weight": np.ascontiguousarray(made.weight[:, :words]), "scale": made.scale}


def random_weight(m: int, k: int, precision: DType, rng: np.random.Generator) -> Arrays:
    """A stored matrix [m, k] with the size of weights that a trained model has."""
    values = rng.standard_normal((m, k), dtype=np.float32) * np.float32(1 / np.sqrt(k))
    return stored_weight(values, precision)


def weight_values(given: Mapping[str, NDArray[Any]], precision: DType) -> NDArray[np.float32]:
    """What `stored_weight` stored, as float32 [M, K]."""
    weight = given["weight"]
    if precision not in QUANTIZED:
        return decode(weight, precision)
    scale, per_word = given["scale"], 32 // precision.bits
    missing = scale.shape[1] * K_MULTIPLE // per_word - weight.shape[1]
    whole = Quantized(np.pad(weight, ((0, 0), (0, missing))), scale)
    return dequantize(whole, precision)[:, : weight.shape[1] * per_word]


def weight_bits(precision: DType) -> float:
    """Bits that one weight takes, its part of a scale included."""
    return precision.bits + (0.5 if precision in QUANTIZED else 0.0)
