"""A smaller problem of the same kind, to verify on when the one to time is large.

An oracle in NumPy and fresh random inputs for a 65536 x 2048 matrix take a second; a variant should
be checked in a tenth of that. Only dimensions that count independent results are cut (rows, heads,
tokens), never one that is summed over, and each keeps its remainder: a matrix with an odd last tile
still has one. The winners of a search are checked on the full problem before they are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from kernelforge.family import KernelFamily
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import DType

MOST_FLOPS = 60e6
MOST_BYTES = 3e6
_FLOORS = {"V": 256, "M": 256, "N": 256, "T": 64, "H": 2, "B": 2}


def reduced_problem(
    family: KernelFamily, precision: DType, problem: Problem, info: DeviceInfo
) -> Problem | None:
    """The smaller problem; None where the problem is small enough itself, or cannot be cut.

    Args:
        family: gives cost, and says which problems it can do.
        precision: of the weights.
        problem: the one to time.
        info: the device; every variant that is valid for `problem` must be for the smaller one.
    """
    smaller = problem
    for name in _order(problem):
        if not _large(family, precision, smaller):
            break
        floor = _FLOORS[name]
        size = floor + problem[name] % floor
        candidate = Problem(**{**smaller, name: size})
        if size < problem[name] and family.refuses(candidate) is None:
            smaller = candidate
    if smaller == problem:
        return None
    if family.space.problem_constraints:
        allowed = {_frozen(p) for p in family.space.valid(info, smaller)}
        if any(_frozen(p) not in allowed for p in family.space.valid(info, problem)):
            return None
    return smaller


def _order(problem: Problem) -> list[str]:
    """Cuttable dimensions, the longest first. N is the head size unless there is a K."""
    names = [n for n in problem if n in _FLOORS and (n != "N" or "K" in problem)]
    return sorted(names, key=lambda n: (-problem[n] / _FLOORS[n], n))


def _large(family: KernelFamily, precision: DType, problem: Problem) -> bool:
    flops, moved = family.cost(problem, precision)
    return flops > MOST_FLOPS or moved > MOST_BYTES


def _frozen(params: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(params.items()))
