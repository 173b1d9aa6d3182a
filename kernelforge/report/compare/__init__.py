"""Two sets of measurements held against each other: what became slower beyond noise."""

from __future__ import annotations

from kernelforge.report.compare.sides import read_side
from kernelforge.report.compare.timing import Side
from kernelforge.report.compare.verdict import Comparison, Row, compare

__all__ = ["Comparison", "Row", "Side", "compare", "read_side"]
