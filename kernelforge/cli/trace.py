"""Where the time of one token goes: every dispatch of a decode step, timed on the device."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from kernelforge.families import load_families
from kernelforge_runtime.models import Model
from kernelforge_runtime.ops.builder import Call
from kernelforge_runtime.state import State

REPEATS = 5
"""Tokens that are run; of each dispatch's times the median is given."""


@dataclass(frozen=True)
class TracedDispatch:
    """One dispatch of a step.

    Attributes:
        label: the weight or state that it works on.
        problem: its dimensions.
        variant: the kernel chosen for it.
        match: how exactly that kernel fits.
        ns: median time on the device.
        nbytes: bytes that it must move at least; 0 where its family is not known here.
    """

    label: str
    problem: str
    variant: str
    match: str
    ns: float
    nbytes: float

    @property
    def gbps(self) -> float:
        """GB/s, of the bytes that must be moved; 0 where not known."""
        return self.nbytes / self.ns if self.ns > 0 else 0.0

    def line(self) -> str:
        """One aligned line."""
        rate = f"{self.gbps:7.2f} GB/s" if self.nbytes else " " * 12
        return (
            f"{self.label[-32:]:<32} {self.ns / 1e3:9.1f} us {rate}  {self.problem:<18} "
            f"{self.match:<9} {self.variant}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "gbps": self.gbps}


def trace_step(model: Model, state: State, token: int) -> list[TracedDispatch]:
    """Runs a few tokens on a copy of the state with a timestamp after every dispatch.

    Returns:
        One entry per dispatch, in order; none where the queue has no timestamps.
    """
    scratch = state.clone()
    runs = [model.trace(token, scratch) for _ in range(REPEATS)]
    calls = [call for call, _ in runs[0]]
    times = [median(run[i][1] for run in runs) for i in range(len(calls))]
    return [_describe(call, ns) for call, ns in zip(calls, times, strict=True)]


def _describe(call: Call, ns: float) -> TracedDispatch:
    entry = call.selection.entry
    family = load_families().get(entry.family)
    nbytes = 0.0
    if family is not None and family.refuses(call.problem) is None:
        nbytes = family.cost(call.problem, family.precision(entry.precision))[1]
    match = call.selection.match.name.lower().partition("_")[0]
    return TracedDispatch(call.label, str(call.problem), entry.variant, match, ns, nbytes)
