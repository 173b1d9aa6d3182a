"""What a time means: bytes and operations per second, and their share of what the device can do.

Source: S. Williams et al., Roofline: an insightful visual performance model, 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class HasCeilings(Protocol):
    """What is needed of `baseline.Ceilings`."""

    @property
    def memory_gbps(self) -> float:
        """Bytes a kernel can move, GB/s."""

    @property
    def fma_gflops(self) -> float:
        """Floating-point operations in float32, GFLOP/s."""


@dataclass(frozen=True)
class Rate:
    """Speed of one kernel. GB = 10^9 bytes.

    Attributes:
        gbps: compulsory bytes per second, GB/s.
        gflops: useful operations per second, GFLOP/s.
        bandwidth_share: of the memory ceiling; NaN without ceilings.
        compute_share: of the multiply-add ceiling; NaN without ceilings.
        bound: "memory" or "compute": the ceiling that allows less; empty without ceilings.
    """

    gbps: float
    gflops: float
    bandwidth_share: float = math.nan
    compute_share: float = math.nan
    bound: str = ""

    @property
    def share(self) -> float:
        """Share of the lower of the two ceilings: 1 is as fast as the device allows.

        Above 1 where data stayed in a cache, or where matrix units or 16-bit arithmetic beat the
        plain float32 rate.
        """
        return self.bandwidth_share if self.bound == "memory" else self.compute_share


def rate(cost: tuple[float, float], ns: float, ceilings: HasCeilings | None = None) -> Rate:
    """Rates from a family's cost (operations, bytes) and a time in ns; NaN times give NaN rates."""
    flops, moved = cost
    if not ns > 0:
        return Rate(math.nan, math.nan)
    gbps, gflops = moved / ns, flops / ns
    if ceilings is None:
        return Rate(gbps, gflops)
    bandwidth = gbps / ceilings.memory_gbps if ceilings.memory_gbps > 0 else math.nan
    compute = gflops / ceilings.fma_gflops if ceilings.fma_gflops > 0 else math.nan
    bound = "compute" if compute > bandwidth else "memory"
    return Rate(gbps, gflops, bandwidth, compute, bound)
