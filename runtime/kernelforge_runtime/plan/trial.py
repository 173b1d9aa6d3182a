"""Opens a device's kernels; where several bundles fit it equally well, the fastest of them.

Bundles that were tuned on other processors are held against each other on this one: by their
fastest matrix-vector products of decode, in turns, on the largest matrix that all of them know.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path

from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, KernelSet, open_bundle
from kernelforge_runtime.errors import BundleError, KernelForgeError, SpirvError
from kernelforge_runtime.plan.dispatch import Dispatch
from kernelforge_runtime.plan.plan import Plan
from kernelforge_runtime.vk import Buffer, Device

FAMILY, PRECISIONS = "gemv", ("bf16", "f16", "q8", "nf4")
"""What decode spends its time on."""
MOST_WEIGHTS = 1 << 22
"""Of a matrix: large enough to tell kernels apart, and a trial of all is over in a second."""
ROUNDS, REPEATS = 7, 4
"""Turns that each kernel gets, and its dispatches in each."""
TIMEOUT_S = 10.0
WORD = 0x3C003C00
"""What operands are filled with: a small finite number in every format, and none is zero, which
kernels for sparse inputs would pass over."""

_log = logging.getLogger(__name__)


def open_kernels(
    device: Device,
    path: str | os.PathLike[str] | None = None,
    search: Iterable[Traversable] | None = None,
) -> KernelSet:
    """As `KernelSet.open`, and where bundles fit equally well, measured here or remembered.

    Raises:
        BundleError: no bundle can be used.
    """
    return KernelSet.open(device.info, path, search, judge=partial(fastest_of, device))


def fastest_of(device: Device, rivals: Sequence[Path]) -> Path | None:
    """The bundle whose kernels are fastest here.

    Args:
        device: where to run them.
        rivals: folders of bundles for this device, in the order in which they would be taken.

    Returns:
        What has the least geometric mean of times over the precisions that all of them know; None
        where nothing could be measured.
    """
    bundles = {folder: found for folder in rivals if (found := _opened(folder, device))}
    if len(bundles) < 2:
        return next(iter(bundles), None)
    known = {folder: _products(bundle) for folder, bundle in bundles.items()}
    logs = dict.fromkeys(bundles, 0.0)
    try:
        for precision, problem in _common(list(known.values())):
            modules = [b.module(known[folder][precision, problem]) for folder, b in bundles.items()]
            for folder, time_ns in zip(bundles, _in_turns(device, modules, problem), strict=True):
                logs[folder] += math.log(time_ns)
    except KernelForgeError as error:
        _log.warning("bundles were not held against each other: %s", error)
        return None
    return min(logs, key=lambda folder: logs[folder]) if any(logs.values()) else None


def _opened(folder: Path, device: Device) -> Bundle | None:
    try:
        return open_bundle(folder, device.info)
    except (BundleError, SpirvError) as error:
        _log.warning("bundle passed over: %s", error)
        return None


def _products(bundle: Bundle) -> dict[tuple[str, Problem], Entry]:
    """(precision, problem) -> its fastest product of a vector, in whichever layout."""
    found: dict[tuple[str, Problem], Entry] = {}
    for entry in sorted(bundle.entries, key=lambda e: -e.median_ns):
        problem = entry.problem
        if entry.family != FAMILY or not entry.median_ns or problem["T"] > 1:
            continue
        if problem["M"] * problem["K"] <= MOST_WEIGHTS and bundle.is_usable(entry):
            found[entry.precision, problem] = entry
    return found


def _common(known: Sequence[Mapping[tuple[str, Problem], Entry]]) -> list[tuple[str, Problem]]:
    """For each precision the largest problem that all of them know."""
    common = set.intersection(*(set(found) for found in known))
    best = []
    for precision in PRECISIONS:
        problems = [problem for name, problem in common if name == precision]
        if problems:
            size = max(problems, key=lambda p: (p["M"] * p["K"], tuple(sorted(p.items()))))
            best.append((precision, size))
    return best


def _in_turns(device: Device, modules: Sequence[ShaderModule], problem: Problem) -> list[float]:
    """Least ns per dispatch of each, of runs that take turns."""
    with ExitStack() as stack:
        buffers: dict[tuple[str, int], Buffer] = {}
        plans = []
        for module in modules:
            given = {}
            for binding in module.signature.bindings:
                if binding.is_own:  # the plan provides it
                    continue
                key = binding.name, binding.nbytes(problem)
                if key not in buffers:
                    buffer = device.buffer(key[1], name=f"trial {binding.name}")
                    stack.callback(buffer.close)
                    # A route of zeros: every row takes the first input, and its sum as it is.
                    buffer.fill(0 if binding.name == "route" else WORD)
                    buffers[key] = buffer
                given[binding.name] = buffers[key]
            dispatches = [Dispatch(module, problem, given)] * REPEATS
            plans.append(stack.enter_context(Plan(device, dispatches, "ends", name="trial")))
        times = [math.inf] * len(plans)
        for _ in range(ROUNDS):
            for place, plan in enumerate(plans):
                plan.run(TIMEOUT_S)
                times[place] = min(times[place], max(plan.elapsed_ns(), 1.0) / REPEATS)
        return times
