"""A matrix product's route: per 32 rows, where their input starts and what becomes of the sums.

A route is u32 [rows / 32, 4]: the input's offset and the stride between its rows, both in elements
and multiples of 8, an epilogue's code, and the offset of `aux`, in elements. For a sum v:

    bias: v += aux      v = activation(v)      gate: v *= aux      add: v += y      halve: v *= 0.5

and then y = v. Row m of token t takes aux[offset + t * stride + m % 32]. The templates' side of it
is templates/lib/activation.glsl.j2.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernelforge_runtime.errors import PlanError

ROUTE_ROWS = 32
"""Rows of a matrix that share one route entry."""
ACTIVATIONS: Mapping[str, int] = {"none": 0, "relu2": 1, "tanh": 2, "sigmoid": 3, "silu": 4}
ACTIVATION_MASK = 0x7
BIAS = 1 << 3
GATE = 1 << 4
ADD = 1 << 5
HALVE = 1 << 6
STRIDE_SHIFT = 8
MAX_STRIDE = 2**24 - 1


def route_code(
    activation: str = "none",
    bias: bool = False,
    gate: bool = False,
    add: bool = False,
    halve: bool = False,
    stride: int = 0,
) -> int:
    """The third word of a route entry.

    Args:
        activation: one of ACTIVATIONS.
        bias: aux is added before the activation.
        gate: aux multiplies what the activation gives.
        add: what y held is added: a residual.
        halve: the result is halved at the end.
        stride: elements of aux from one token to the next; 0 where all tokens share a row.

    Raises:
        PlanError: an unknown activation, a stride that does not fit, or both bias and gate, which
            would need two aux vectors.
    """
    if activation not in ACTIVATIONS:
        raise PlanError(f"activation {activation!r}: have {', '.join(ACTIVATIONS)}")
    if bias and gate:
        raise PlanError("a route has one aux vector: bias or gate, not both")
    if not 0 <= stride <= MAX_STRIDE:
        raise PlanError(f"aux stride {stride}: use 0 to {MAX_STRIDE}")
    flags = (BIAS if bias else 0) | (GATE if gate else 0) | (ADD if add else 0)
    return ACTIVATIONS[activation] | flags | (HALVE if halve else 0) | stride << STRIDE_SHIFT
