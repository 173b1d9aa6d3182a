"""What won elsewhere, as a file that ships with the package, and the few of it worth a trial.

The file holds, per problem that was tuned on some device, the fastest variants and what part of
the best one's speed each reaches. For a new problem, configurations are chosen greedily so that
the best one of the chosen set is, on average over these, as fast as can be: a handful covers what
many devices like. Source of the idea: "A Few Fit Most", arXiv 2507.15277.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import SpaceError, TuneError
from kernelforge.family import KernelFamily
from kernelforge.tune.encoded import Encoded
from kernelforge.tune.problems import TuneTask
from kernelforge.variant import Variant
from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import read_manifest
from kernelforge_runtime.errors import BundleError, KernelForgeError
from kernelforge_runtime.written_file import written_whole

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]

FORMAT, VERSION = "kernelforge.portfolio", 1
SHIPPED = "portfolio.json"
MOST = 8
"""Configurations for one problem."""
LEAST_GAIN = 0.005
"""A configuration that brings the mean best less covers nothing new."""
_OTHER_PRECISION = 0.25
"""What a problem counts that was tuned in another precision."""


@dataclass(frozen=True)
class Known:
    """One problem as it was tuned on one device.

    Attributes:
        device: its slug.
        family: name.
        precision: name.
        problem: what was tuned.
        default: part of the best one's speed that the family's default reached there; 0 where it
            could not run.
        shares: variant's name -> part of the best one's speed, 0 to 1.
    """

    device: str
    family: str
    precision: str
    problem: Problem
    default: float
    shares: Mapping[str, float]


def portfolio_of(bundles: Iterable[Path]) -> list[Known]:
    """What bundles know: their winners per family, precision and problem.

    Generic bundles hold defaults that nobody chose by measuring; they are left out, and so is
    whatever was packed without a time.

    Raises:
        TuneError: one is no bundle, or is damaged.
    """
    found: dict[tuple[str, str, str, str, Problem], dict[str, tuple[float, float]]] = {}
    for path in bundles:
        try:
            manifest = read_manifest(path)
        except BundleError as error:
            raise TuneError(f"portfolio of {path}: {error}") from error
        if manifest.device.slug == GENERIC.slug:
            continue
        for entry in (e for e in manifest.entries if e.median_ns > 0):
            try:
                variant = Variant.parse(entry.variant)
            except SpaceError as error:
                raise TuneError(f"portfolio of {path}: {error}; leave this bundle out") from None
            # A software device on two processors is two devices: times of one say nothing there.
            where = manifest.device.slug, manifest.device.processor
            key = (*where, variant.family, variant.precision, entry.problem)
            found.setdefault(key, {})[variant.name] = (entry.median_ns, entry.default_ns)
    known = []
    for (device, _, family, precision, problem), times in found.items():
        best = min(median for median, _ in times.values())
        default = max(default for _, default in times.values())
        known.append(
            Known(
                device, family, precision, problem,
                default=round(min(1.0, best / default), 3) if default > 0 else 0.0,
                shares={name: round(best / t, 3) for name, (t, _) in sorted(times.items())},
            )
        )  # fmt: skip
    return sorted(known, key=lambda k: (k.family, k.precision, str(k.problem), k.device))


def write_portfolio(known: Sequence[Known], path: Path) -> None:
    """Writes the file: one line per problem, the same bytes for the same content.

    Raises:
        OSError: it cannot be written.
    """
    lines = [
        json.dumps({**vars(k), "problem": str(k.problem), "shares": dict(k.shares)}) for k in known
    ]
    body = ",\n".join(lines)
    text = f'{{"format": "{FORMAT}", "version": {VERSION}, "known": [\n{body}\n]}}\n'
    with written_whole(path) as file:
        file.write(text.encode())


def read_portfolio(path: Path) -> list[Known]:
    """Reads such a file.

    Raises:
        TuneError: it is none, or damaged.
    """
    return _read(path)


@cache
def shipped_portfolio() -> tuple[Known, ...]:
    """The portfolio of this package; empty where it was taken out.

    Raises:
        TuneError: it is damaged.
    """
    resource = files("kernelforge.tune") / SHIPPED
    return tuple(_read(resource)) if resource.is_file() else ()


def _read(path: Traversable) -> list[Known]:
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TuneError(f"portfolio {path}: {error.strerror or error}") from error
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, KernelForgeError
    ) as error:  # fmt: skip
        raise TuneError(
            f"portfolio {path}: not a file of `kernelforge portfolio`, or damaged "
            f"({type(error).__name__}: {error}); make it anew"
        ) from error


def _parsed(text: str) -> list[Known]:
    document = json.loads(text)
    if (document["format"], document["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {document['format']!r} version {document['version']!r}")
    found = []
    for line in document["known"]:
        shares = {Variant.parse(n).name: float(share) for n, share in line["shares"].items()}
        line = {**line, "problem": Problem.parse(line["problem"]), "shares": shares}
        known = Known(**line)
        for share in (known.default, *shares.values()):
            if not 0 <= share <= 1:
                raise ValueError(f"{known.problem}: {share} is no part of the best one's speed")
        for text in (known.device, known.family, known.precision):
            if not isinstance(text, str):
                raise ValueError(f"{known.problem}: {text!r} is no name")
        found.append(known)
    return found


def members_for(
    known: Sequence[Known], task: TuneTask, info: DeviceInfo, most: int = MOST
) -> list[dict[str, Any]]:
    """The configurations that are worth a trial for a task, the one that covers most first.

    What the family's space does not know any more, and what device or problem do not allow, is
    dropped before choosing. Near problems count more than far ones, the task's own precision more
    than others.
    """
    same = [k for k in known if k.family == task.family.name]
    weights = np.array([_weight(k, task) for k in same])
    configs: list[dict[str, Any]] = []
    cells: list[tuple[int, int, float]] = []
    for row, k in enumerate(same):
        for name, share in k.shares.items():
            params = _adapted(task.family, Variant.parse(name), task.problem)
            if params is None or task.family.space.refuses(params, info, task.problem) is not None:
                continue
            if params not in configs:
                if task.family.fits(task.precision, params, info) is not None:
                    continue
                configs.append(params)
            cells.append((row, configs.index(params), share))
    if not configs or not weights.sum() > 0:
        return []
    defaults = np.array([k.default for k in same])
    shares = np.repeat(defaults[:, None], len(configs), 1)  # unknown: no better than the default
    for row, column, share in cells:
        shares[row, column] = max(shares[row, column], share)
    return [configs[i] for i in cover(shares, defaults, weights, Encoded(configs).codes, most)]


def is_distant(known: Iterable[Known], info: DeviceInfo) -> bool:
    """Whether all of it was learned on other devices than this one."""
    return all(k.device != info.slug for k in known)


def _weight(known: Known, task: TuneTask) -> float:
    same = known.precision == task.precision.name
    return (1.0 if same else _OTHER_PRECISION) / (1.0 + task.problem.distance(known.problem))


def _adapted(family: KernelFamily, variant: Variant, problem: Problem) -> dict[str, Any] | None:
    """Its parameters in today's space, those that stand for a dimension as the problem has them."""
    usual = family.space.declared_default
    given = {name: size for name, size in problem.items() if name in usual}
    try:
        return family.space.normalise({**usual, **variant.values, **given})
    except SpaceError as error:
        log.info("portfolio: %s: %s", variant, error)
        return None


def cover(
    shares: Floats, base: Floats, weights: Floats, codes: NDArray[np.int64], most: int
) -> list[int]:
    """Greedily, the configurations whose best one is fastest on average.

    Where none adds anything, what follows is fast and as unlike the chosen ones as can be: on
    another device the first may be slow, and its neighbours with it.

    Args:
        shares: [problems, configurations] part of the problem's best speed.
        base: [problems] what is reached without any of them.
        weights: [problems] what each counts; not all zero.
        codes: [configurations, parameters] the values by number, to tell likeness.
        most: how many to choose at the most.

    Returns:
        Numbers of configurations, in the order of choice.
    """
    weights = weights / weights.sum()
    reached, mean = base.copy(), weights @ shares
    novelty = np.ones(shares.shape[1])
    chosen: list[int] = []
    while len(chosen) < min(most, shares.shape[1]):
        gain = weights @ np.maximum(shares - reached[:, None], 0.0)
        left = ~np.isin(np.arange(shares.shape[1]), chosen)
        worth = gain if np.max(gain, where=left, initial=0.0) >= LEAST_GAIN else mean * novelty
        pick = int(np.argmax(np.where(left, worth, -1.0)))
        chosen.append(pick)
        reached = np.maximum(reached, shares[:, pick])
        novelty = np.minimum(novelty, (codes != codes[pick]).mean(axis=1) if codes.size else 0.0)
    return chosen
