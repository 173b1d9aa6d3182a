"""What a bench records of where a decoded token's time goes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from kernelforge.report.bench_journal import Operation
from kernelforge_runtime.errors import KernelForgeError

if TYPE_CHECKING:
    from kernelforge_runtime.models import Model
    from kernelforge_runtime.ops.builder import Call
    from kernelforge_runtime.state import State

log = logging.getLogger(__name__)

REPEATS = 5
"""Tokens with a timestamp after every dispatch; of each dispatch's times the median counts."""
_LAYER = re.compile(r"^blocks\.\d+\.|\.\d+$|\.weight$")


def operation_facts(model: Model, state: State) -> dict[str, Any]:
    """Fields of a bench record: the operations of one decoded token, and where they are from.

    The state does not move: a copy does. Where the queue has no timestamps, the times that the
    bundle gives its kernels are added up; nothing where it gives none.
    """
    try:
        scratch = state.clone()
        runs = model.trace([1], scratch, repeats=REPEATS)
    except KernelForgeError as error:
        log.warning("no operations of a token are recorded: %s", error)
        return {}
    if runs[0].dispatch_ns:
        times = [median(each) for each in zip(*(run.dispatch_ns for run in runs), strict=True)]
        found = operations(runs[0].calls, times)
        return {"operations": found, "operations_from": "traced"}
    calls = model.calls(1)
    times = [float(call.selection.entry.median_ns) for call in calls]
    if not all(times):
        return {}
    return {"operations": operations(calls, times), "operations_from": "packed"}


def operations(calls: Sequence[Call], ns: Sequence[float]) -> tuple[Operation, ...]:
    """Dispatches of the same work in different layers as one operation, in order of their first."""
    found: dict[tuple[str, str], list[float]] = {}
    for call, time in zip(calls, ns, strict=True):
        family = call.selection.entry.family
        found.setdefault((work(call.label) or family, family), []).append(time)
    return tuple(
        Operation(name, family, len(times), round(sum(times) / 1e3, 3))
        for (name, family), times in found.items()
    )


def work(label: str) -> str:
    """What a dispatch works on, whatever its layer: `blocks.3.ffn.key.weight` is `ffn.key`."""
    before = None
    while before != label:
        before, label = label, _LAYER.sub("", label)
    return label
