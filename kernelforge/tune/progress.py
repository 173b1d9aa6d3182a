"""What a tuning run says while it goes on: one value per finished trial, and its log line."""

from __future__ import annotations

from dataclasses import dataclass

from kernelforge.measure.measurement import Measurement
from kernelforge.measure.roofline import rate
from kernelforge_runtime.abi.problem import Problem


@dataclass(frozen=True)
class Progress:
    """The state after one trial.

    Attributes:
        number: trials finished in this study, this one included.
        limit: trials it will make at most.
        last: the measurement just made.
        best_ns: the fastest time so far; None before the first good one.
        cost: (operations, bytes) of the problem.
        left_s: seconds left for this problem; None for no limit.
    """

    family: str
    precision: str
    problem: Problem
    number: int
    limit: int
    last: Measurement
    best_ns: float | None
    cost: tuple[float, float]
    left_s: float | None = None

    @property
    def gbps(self) -> float:
        """GB/s of the last trial; NaN where it failed."""
        return rate(self.cost, self.last.median_ns).gbps

    @property
    def gflops(self) -> float:
        """GFLOP/s of the last trial; NaN where it failed."""
        return rate(self.cost, self.last.median_ns).gflops

    def line(self) -> str:
        """One aligned line, easy to grep."""
        params = self.last.variant.rsplit("/", 1)[-1]
        head = f"{self.family} {self.precision} {self.problem}"
        trial = f"trial {self.number:>3}/{self.limit}"
        if self.last.ok:
            speed = rate(self.cost, self.last.median_ns)
            figure = f"{speed.gbps:7.1f} GB/s"
            if self.cost[0] > 10 * self.cost[1]:
                figure = f"{speed.gflops:7.1f} GFLOP/s"
            result = f"{self.last.median_ns / 1e3:10.1f} µs {figure}"
        else:
            result = f"{self.last.outcome.value}: {self.last.reason}"
        best = "" if self.best_ns is None else f"  best {self.best_ns / 1e3:.1f}"
        return f"{head}  {trial}  {params:<48} {result}{best}"
