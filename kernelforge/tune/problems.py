"""Which problems to tune: those of a model, without doubles, the ones that cost most first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kernelforge.errors import SpaceError, TuneError
from kernelforge.family import KernelFamily
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle.crossover import RIVALS, contenders
from kernelforge_runtime.dtypes import DType

FLOPS_PER_BYTE = 10.0
"""Arithmetic that takes as long as moving one byte, roughly, on the devices of the day."""
NEAR = 0.12
"""Problems of which each dimension differs by less than this share are tuned as one."""
OTHER_PRECISION = 2.0
"""How far away another precision is, in doublings of one dimension."""


@dataclass(frozen=True)
class TuneTask:
    """One study to run.

    Attributes:
        family: what to tune.
        precision: in which precision.
        problem: at which dimensions.
        calls: how often a model calls it per step, what it stands for included.
        stands_for: nearly equal problems that are not tuned themselves.
        weight: estimated share of the model's time, in bytes moved (arithmetic counted as bytes).
    """

    family: KernelFamily
    precision: DType
    problem: Problem
    calls: int = 1
    stands_for: tuple[Problem, ...] = ()

    @property
    def weight(self) -> float:
        """Bytes moved and arithmetic, as bytes, times calls."""
        flops, moved = self.family.cost(self.problem, self.precision)
        return self.calls * (moved + flops / FLOPS_PER_BYTE)

    def distance(self, precision: str, problem: Problem) -> float:
        """How unlike another tuned problem of this family is: what won there, wins here less often.

        Args:
            precision: its name.
            problem: its dimensions.

        Returns:
            `Problem.distance`, and `OTHER_PRECISION` where it is in another one. What wins changes
            more from 8 tokens to 256 than from one 16-bit type to the other.
        """
        other = precision != self.precision.name
        return self.problem.distance(problem) + (OTHER_PRECISION if other else 0.0)

    def __str__(self) -> str:
        return f"{self.family.name} {self.precision} {self.problem}"


def collect_tasks(
    found: Iterable[tuple[str, str, Problem, int]],
    families: Mapping[str, KernelFamily],
    share: float = NEAR,
) -> list[TuneTask]:
    """Tasks from what a model's plans call: (family, precision, problem, calls) each.

    Equal ones are added up. Of problems that are nearly the same, the one that weighs most is
    tuned, and stands for the others too: bundles are looked up by nearest problem.

    Args:
        found: the calls.
        families: all there are, by name.
        share: by how much a dimension of such problems may differ; see `near`.

    Raises:
        TuneError: a family or precision that is not known.
    """
    calls: dict[tuple[str, str, Problem], int] = {}
    for family, precision, problem, count in found:
        key = (family, precision, problem)
        calls[key] = calls.get(key, 0) + count
    tasks = [
        TuneTask(*_resolve(family, precision, families), problem, count)
        for (family, precision, problem), count in calls.items()
    ]
    tasks.sort(key=lambda task: (-task.weight, str(task)))
    kept: list[TuneTask] = []
    for task in tasks:
        for i, other in enumerate(kept):
            if near(other, task, share):
                kept[i] = replace(
                    other,
                    calls=other.calls + task.calls,
                    stands_for=(*other.stands_for, task.problem),
                )
                break
        else:
            kept.append(task)
    return sorted(kept, key=lambda task: (-task.weight, str(task)))


def near(one: TuneTask, other: TuneTask, share: float = NEAR) -> bool:
    """Whether one study can stand for both: same family and precision, and all but equal sizes.

    Each dimension of one is within the share of the other's, and what a variant is compiled for
    (the type of the activations, the size of a head) is equal.
    """
    family, a, b = one.family, one.problem, other.problem
    if other.family is not family or other.precision != one.precision or a.keys() != b.keys():
        return False
    fixed = family.signature(one.precision, family.space.declared_default).fixed
    compiled = {name for name, _ in fixed}
    return all(
        max(a[n], b[n]) <= (1.0 if n in compiled else 1.0 + share) * min(a[n], b[n]) for n in a
    )


def with_rivals(
    found: Iterable[tuple[str, str, Problem, int]],
    families: Mapping[str, KernelFamily],
    target: DeviceInfo,
    rounding: bool = False,
) -> list[tuple[str, str, Problem, int]]:
    """What a model's plans call, and with each call the same one by every family that may do it.

    Only figures of all tell the runtime which to take (see `bundle.crossover`).

    Args:
        found: as for `collect_tasks`.
        families: all there are, by name.
        target: the device, without what the compiler cannot build; see `compile.buildable`.
        rounding: whether families that round their inputs may do it, too.
    """
    calls = list(found)
    for family, precision, problem, count in tuple(calls):
        rivals = [
            name
            for name in contenders(family, problem, rounding)[1:]
            if name in families and _can(families[name], precision, problem, target)
        ]
        calls += [(name, precision, problem, count) for name in rivals]
        calls += _between(family, rivals, precision, problem)
    return calls


def _between(
    family: str, names: Sequence[str], precision: str, problem: Problem
) -> list[tuple[str, str, Problem, int]]:
    """All of them at fewer tokens, each once, where the number of tokens decides between them."""
    found = dict.fromkeys(
        (each, precision, shorter, 1)
        for rival in RIVALS.get(family, ())
        if rival.family in names
        for shorter in rival.lengths(problem)
        for each in (family, rival.family)
    )
    return list(found)


def _can(family: KernelFamily, precision: str, problem: Problem, target: DeviceInfo) -> bool:
    """Whether a variant of the family does this on the device."""
    try:
        family.default(precision, target, problem)
    except SpaceError:
        return False
    return family.refuses(problem) is None


def _resolve(
    family: str, precision: str, families: Mapping[str, KernelFamily]
) -> tuple[KernelFamily, DType]:
    if family not in families:
        raise TuneError(f"family {family!r}: not known; have {', '.join(sorted(families))}")
    for dtype in families[family].precisions:
        if dtype.name == precision:
            return families[family], dtype
    have = ", ".join(d.name for d in families[family].precisions)
    raise TuneError(f"{family} in {precision}: not declared; it has {have}")
