"""The layouts of weights that product families offer; templates/lib/weight_place says what for."""

from __future__ import annotations

from kernelforge.space import Choice
from kernelforge_runtime.dtypes import DType

TOGETHER = {"by4": 4, "by8": 8, "by32": 32}
"""Rows that lie together, 16 bytes of each in turn."""
LAYOUT = Choice("LAYOUT", ("rows", "gap", *TOGETHER), default="rows")
_UNIT_BITS, _GAP_BITS = 128, 512


def layout_name(choice: str, precision: DType) -> str:
    """What Binding.layout says for a choice; scales of q8 and nf4 stay row-major in all of them.

    They are a 16th and an 8th of what is read, and a row's lie side by side.
    """
    if choice == "gap":
        return f"M K+{_GAP_BITS // precision.bits}"
    if choice == "rows":
        return ""
    rows, unit = TOGETHER[choice], _UNIT_BITS // precision.bits
    return f"M/{rows} K/{unit} M%{rows} K%{unit}"
