"""Problems that a bundle was not tuned for: drawn like those of models of other sizes.

The runtime serves such a problem with the kernel of the nearest one it knows; what that costs
against the problem's own optimum shows only when some of them are tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kernelforge.family import KernelFamily
from kernelforge.measure.statistics import Interval
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Entry

WIDTHS = (0.5, 2 / 3, 0.75, 4 / 3, 1.5, 2.0, 8 / 3)
"""Of another model, over the width of the one that was tuned: 512 to 2048 for one of 768."""
TOKENS = (0.375, 0.5, 1.0, 2.0)
"""Of another prompt, over the tuned one's; a single token stays one."""
WIDE, STEP = "MKCP", 32
"""Dimensions that grow with the model's width, and what they are multiples of."""
FAR = 0.25
"""At least so far from every tuned problem; see Problem.distance."""
TRIES = 200


@dataclass(frozen=True)
class Drawn:
    """One problem that was not tuned.

    Attributes:
        like: the tuned entry it was drawn from.
    """

    family: KernelFamily
    precision: str
    problem: Problem
    like: Entry


@dataclass(frozen=True)
class Judged:
    """What the runtime's choice is worth on one of them.

    Attributes:
        nearest: the problem that the chosen kernel was tuned for.
        chosen: variant that the runtime takes.
        best: the fastest that a search of its own found for operands that lie alike.
        chosen_ns: of both measured in turns.
        best_ns: as above.
        ratio: chosen over best; 1 is as good as tuned.
        trials: of that search.
    """

    family: str
    precision: str
    problem: Problem
    nearest: Problem
    chosen: str
    best: str
    chosen_ns: float
    best_ns: float
    ratio: Interval
    trials: int


def draw(
    entries: Sequence[Entry],
    family_of: Callable[[str], KernelFamily],
    count: int,
    seed: int,
) -> list[Drawn]:
    """Problems near those of a bundle, but of other widths and numbers of tokens, none twice.

    Args:
        entries: of the bundle; each family, precision and problem is as likely as any other.
        family_of: the family of a name.
        count: how many; fewer where the families refuse what is drawn.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    known: dict[tuple[str, str], set[Problem]] = {}
    distinct: dict[tuple[str, str, Problem], Entry] = {}
    for entry in entries:
        known.setdefault((entry.family, entry.precision), set()).add(entry.problem)
        distinct.setdefault((entry.family, entry.precision, entry.problem), entry)
    pool = [distinct[key] for key in sorted(distinct, key=str)]
    found: list[Drawn] = []
    for _ in range(TRIES * count if pool else 0):
        if len(found) == count:
            break
        entry = pool[int(rng.integers(len(pool)))]
        family = family_of(entry.family)
        problem = _other_size(entry.problem, rng)
        near = known[entry.family, entry.precision]
        if family.refuses(problem) is not None or not entry.signature.serves(problem):
            continue
        if min(problem.distance(other) for other in near) >= FAR:
            near.add(problem)
            found.append(Drawn(family, entry.precision, problem, entry))
    return found


def _other_size(problem: Problem, rng: np.random.Generator) -> Problem:
    width, tokens = float(rng.choice(WIDTHS)), float(rng.choice(TOKENS))
    dims = dict(problem)
    for name, size in dims.items():
        if name in WIDE and size >= STEP:
            dims[name] = max(STEP, round(size * width / STEP) * STEP)
        elif name == "H":
            dims[name] = max(1, round(size * width))
    if problem.get("T", 1) > 1:
        dims["T"] = max(2, round(problem["T"] * tokens))
        if "D" in dims and problem["D"] == problem["T"]:  # a decay per token
            dims["D"] = dims["T"]
    return Problem(**dims)


def summary(found: Sequence[Judged]) -> str:
    """What came out, in one line."""
    ratios = [one.ratio.ratio for one in found if math.isfinite(one.ratio.ratio)]
    if not ratios:
        return "no problem could be compared"
    mean = math.exp(math.fsum(math.log(r) for r in ratios) / len(ratios))
    near = sum(r <= 1.03 for r in ratios)
    worst = max((one for one in found if one.ratio.ratio in ratios), key=lambda o: o.ratio.ratio)
    return (
        f"{len(ratios)} problems never tuned: the runtime's choice takes {mean:.2f} times their "
        f"own best (geometric mean), {near} of them at most 1.03 times; the worst is "
        f"{worst.family} {worst.precision} {worst.problem}, {worst.ratio.ratio:.2f} times"
    )
