"""Keeps a good variant for every layout of the operands, and for all sizes, beside the fastest.

A matrix is kept in one layout, though several families read it: which one that is shows only when
all of them are measured. And what is fastest may be right for multiples of a tile only: then
something must do the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import Measurement
from kernelforge.variant import Variant
from kernelforge_runtime.abi.signature import Layouts, Signature
from kernelforge_runtime.dtypes import DType


def layouts_of(family: KernelFamily, precision: DType, measured: Measurement) -> Layouts:
    """How the measured variant wants its operands to lie in memory."""
    return signature_of(family, precision, measured).layouts


def kind_of(signature: Signature) -> tuple[Layouts, bool]:
    """What only one of is needed: a layout, and whether it serves some sizes only."""
    return signature.layouts, signature.is_limited


def with_every_layout(
    family: KernelFamily,
    precision: DType,
    finalists: Sequence[Measurement],
    found: Sequence[Measurement],
) -> list[Measurement]:
    """The finalists, and behind them the best of each layout that serves all sizes."""
    chosen = list(finalists)
    signatures = [signature_of(family, precision, m) for m in chosen]
    have = {s.layouts for s in signatures if not s.is_limited}
    for measurement in sorted((m for m in found if m.ok), key=lambda m: m.time_ns):
        signature = signature_of(family, precision, measurement)
        if signature.layouts not in have and not signature.is_limited:
            have.add(signature.layouts)
            chosen.append(measurement)
    return chosen


def signature_of(family: KernelFamily, precision: DType, measured: Measurement) -> Signature:
    """The measured variant's signature."""
    params = family.space.normalise(Variant.parse(measured.variant).values)
    return family.signature(precision, params)
