"""Finalists of every layout: a matrix's other readers may need what this family does not want."""

from __future__ import annotations

from kernelforge.families.gemv import GEMV
from kernelforge.measure.measurement import Measurement, Outcome
from kernelforge.tune.every_layout import layouts_of, with_every_layout
from kernelforge_runtime.dtypes import F32


def measured(layout: str, rows: int, ns: float, outcome: Outcome = Outcome.OK) -> Measurement:
    params = {**GEMV.space.declared_default, "LAYOUT": layout, "ROWS": rows}
    return Measurement(
        family="gemv",
        precision="f32",
        problem="M64.K64.S1.T1.X32.Y32",
        variant=GEMV.variant(F32, params).name,
        device="llvmpipe",
        driver="",
        outcome=outcome,
        median_ns=ns,
    )


def test_the_best_of_each_layout_joins_the_finals() -> None:
    fast = [measured("by4", 4, 10), measured("by4", 8, 11)]
    found = [
        *fast,
        measured("rows", 1, 30),
        measured("rows", 2, 20),
        measured("by8", 8, 5, Outcome.WRONG_RESULT),
        measured("gap", 2, 90),
    ]
    finals = with_every_layout(GEMV, F32, fast, found)
    assert finals[:2] == fast
    assert [m.median_ns for m in finals[2:]] == [20, 90]
    assert [layouts_of(GEMV, F32, m) for m in finals[2:]] == [(), (("weight", "M K+16"),)]
