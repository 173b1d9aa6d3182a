"""Winners of other bundles as first candidates: of any device, and of any problem.

What is fast on one device is often fast on another, so a search that starts there needs fewer
trials; where it is not, it costs those few.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.errors import SpaceError, TuneError
from kernelforge.tune.problems import TuneTask
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import read_manifest
from kernelforge_runtime.errors import BundleError

log = logging.getLogger(__name__)

MOST = 6
"""Configurations that one problem takes over: a search of forty has others to try."""


@dataclass(frozen=True)
class Start:
    """A configuration that won somewhere.

    Attributes:
        variant: its full name.
        problem: where it won.
        bundle: the slug of the device it won on.
    """

    variant: Variant
    problem: Problem
    bundle: str


def read_starts(bundles: Iterable[Path]) -> list[Start]:
    """The winners of bundles.

    Args:
        bundles: folders with a manifest.

    Raises:
        TuneError: one is no bundle, or is damaged.
    """
    found = []
    for path in bundles:
        try:
            manifest = read_manifest(path)
        except BundleError as error:
            raise TuneError(f"--warm-start {path}: {error}") from error
        for entry in manifest.entries:
            try:
                variant = Variant.parse(entry.variant)
            except SpaceError as error:
                raise TuneError(f"--warm-start {path}: {error}; leave this bundle out") from None
            found.append(Start(variant, entry.problem, manifest.device.slug))
    return found


def won_here(starts: Sequence[Start], task: TuneTask, info: DeviceInfo) -> dict[str, Any] | None:
    """What won this very problem on this very device before, if it still fits.

    The first of a manifest's entries for a problem is its winner; others are for other layouts.
    """
    own = [
        start
        for start in starts
        if start.bundle == info.slug
        and start.variant.family == task.family.name
        and start.variant.precision == task.precision.name
        and task.problem.distance(start.problem) == 0
    ]
    return next(iter(starts_for(own[:1], task, info, 1)), None)


def starts_for(
    starts: Sequence[Start], task: TuneTask, info: DeviceInfo, most: int = MOST
) -> list[dict[str, Any]]:
    """The configurations that fit a task, each once: what is most like it first.

    A parameter that the winner's family did not have yet takes its default, and one that stands for
    a dimension takes the task's. What the family's space does not know any more is left out, and so
    is what the device or the problem does not allow.
    """
    space = task.family.space
    usual = {choice.name: choice.default for choice in space.choices}
    given = {name: size for name, size in task.problem.items() if name in usual}
    same = [s for s in starts if s.variant.family == task.family.name]
    same.sort(key=lambda s: task.distance(s.variant.precision, s.problem))
    found: list[dict[str, Any]] = []
    for start in same:
        try:
            params = space.normalise({**usual, **start.variant.values, **given})
        except SpaceError as error:
            log.info("%s of %s: %s", start.variant, start.bundle, error)
            continue
        if params not in found and space.refuses(params, info, task.problem) is None:
            found.append(params)
        if len(found) == most:
            break
    return found
