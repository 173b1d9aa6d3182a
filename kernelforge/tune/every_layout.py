"""Keeps a good variant of every layout of the operands, beside the fastest ones.

A matrix is kept in one layout, though several families read it: which one that is shows only when
all of them are measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge.family import KernelFamily
from kernelforge.measure.measurement import Measurement
from kernelforge.variant import Variant
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.dtypes import DType


def layouts_of(family: KernelFamily, precision: DType, measured: Measurement) -> Layouts:
    """How the measured variant wants its operands to lie in memory."""
    params = family.space.normalise(Variant.parse(measured.variant).values)
    return family.signature(precision, params).layouts


def with_every_layout(
    family: KernelFamily,
    precision: DType,
    finalists: Sequence[Measurement],
    found: Sequence[Measurement],
) -> list[Measurement]:
    """The finalists, and behind them the best of each layout that none of them has."""
    chosen = list(finalists)
    have = {layouts_of(family, precision, m) for m in chosen}
    for measurement in sorted((m for m in found if m.ok), key=lambda m: m.time_ns):
        layouts = layouts_of(family, precision, measurement)
        if layouts not in have:
            have.add(layouts)
            chosen.append(measurement)
    return chosen
