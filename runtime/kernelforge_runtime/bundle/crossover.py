"""Which of several families does a call: the usual one, or a rival that was measured faster.

Rivals take the same buffers and dimensions and give the same results, so whoever asks for the usual
family may be given the kernel of another. Those that round their inputs first are only for whom
that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.signature import Layouts
from kernelforge_runtime.bundle.bundle import Bundle
from kernelforge_runtime.bundle.entry import Entry

FEW_TOKENS = 16
"""Of a sequence: for fewer a recurrence always goes token by token."""
STEP = 4
"""Factor between the lengths at which a crossover is looked for."""


class Rival(NamedTuple):
    """A family that may do another one's calls.

    Attributes:
        family: its name.
        may: whether it gives the results of the usual family on this problem, as far as the model
            was promised them, and may be worth its while.
        along: dimensions that are a number of tokens where they equal T, T first, if it is their
            number that decides: then all of them are to be measured at several.
        rounds: whether it rounds its inputs, and so gives other results than the usual family.
        scales: whether times of either go with the number of workgroups, so that figures of
            unlike problems can be compared: one pass over the weights serves several tokens of
            one kernel and one of another.
    """

    family: str
    may: Callable[[Problem], bool]
    along: tuple[str, ...] = ()
    rounds: bool = False
    scales: bool = False

    def lengths(self, problem: Problem) -> list[Problem]:
        """The problem for fewer and fewer tokens, as long as the rival may do it; not itself."""
        found, tokens = [], problem["T"] if self.along else 0
        while tokens := tokens // STEP:
            fewer = {n: tokens for n in self.along if problem[n] == problem["T"]}
            shorter = Problem(**{**problem, **fewer})
            if not self.may(shorter):
                break
            found.append(shorter)
        return found


def _halves(problem: Problem) -> bool:
    """What is multiplied, or even summed, in float16: exact runs keep float32 activations."""
    return problem["X"] == 16


def _stretches(problem: Problem) -> bool:
    """A chunk is four tokens at least, and its matrices cost what a few tokens do one by one."""
    return problem["T"] >= FEW_TOKENS * problem["B"]


def _several(problem: Problem) -> bool:
    """More tokens than one: a tile of a prompt's product may read each weight fewer times."""
    return problem.get("T", 1) > 1


def _any(problem: Problem) -> bool:
    return True


RIVALS: dict[str, tuple[Rival, ...]] = {
    "gemm": tuple(Rival(name, _halves) for name in ("gemm_coop", "gemm_coop2", "gemm_half")),
    "gemv": (Rival("gemm", _several, scales=True), Rival("gemv_dot", _any, rounds=True)),
    "wkv6": (
        Rival("wkv6_chunk", _stretches, ("T", "D")),
        Rival("wkv6_chunk_coop", _stretches, ("T", "D")),
    ),
    "wkv7": (
        Rival("wkv7_chunk", _stretches, ("T",)),
        Rival("wkv7_chunk_coop", _stretches, ("T",)),
    ),
}
"""By the family that is asked for."""


def contenders(family: str, problem: Problem, rounding: bool = False) -> tuple[str, ...]:
    """The families that may do this call, the usual one first.

    Args:
        family: the usual one.
        problem: of the call.
        rounding: whether those that round their inputs may, too.
    """
    rivals = (r for r in RIVALS.get(family, ()) if rounding or not r.rounds)
    return family, *(r.family for r in rivals if r.may(problem))


def rounding_rivals(family: str) -> tuple[str, ...]:
    """Those rivals of a family that round their inputs."""
    return tuple(r.family for r in RIVALS.get(family, ()) if r.rounds)


def fastest(
    bundles: Sequence[Bundle],
    families: Sequence[str],
    precision: str,
    problem: Problem,
    layouts: Layouts = (),
) -> str:
    """The family whose kernel was measured fastest; the first where nothing tells.

    A rival is compared with the first family where both were measured on the same problem: on this
    one, else on the nearest; or, where times scale, by what either's kernel for this problem would
    take. The first bundle with such a pair decides, as it does for kernels. One that was beaten
    there is not taken, whatever its figures.

    Args:
        bundles: best first.
        families: contenders, the usual one first.
        precision: e.g. `f16`.
        problem: what is to be computed.
        layouts: how its operands lie in memory: kernels that want other layouts do not take part.
    """
    usual, *rivals = families
    for bundle in bundles if rivals else ():
        known = _measured(bundle, usual, precision, problem, layouts)
        gains = {}
        for rival in rivals:
            others = _measured(bundle, rival, precision, problem, layouts)
            if scales(usual, rival):
                times = [_scaled(found, problem) for found in (known, others)]
                if all(times):
                    gains[rival] = times[0] / times[1]
                continue
            lost = bundle.beaten(rival, precision, layouts, problem)
            both = [
                p for p in known
                if (p in others or p in lost) and math.isfinite(problem.distance(p))
            ]  # fmt: skip
            nearest = min(both, key=problem.distance, default=None)
            if nearest is not None:
                theirs = others[nearest].median_ns if nearest in others else math.inf
                gains[rival] = known[nearest].median_ns / theirs
        if gains:
            best = max(gains, key=lambda rival: gains[rival])
            return best if gains[best] > 1.0 else usual
    return usual


def scales(usual: str, rival: str) -> bool:
    """Whether times of a rival and its usual family go with the number of workgroups."""
    return any(r.scales for r in RIVALS.get(usual, ()) if r.family == rival)


def _scaled(known: Mapping[Problem, Entry], problem: Problem) -> float:
    """Ns on this problem of the kernel that is nearest to it, by its workgroups; 0 without one."""
    tuned = min(known, key=problem.distance, default=None)
    if tuned is None or not math.isfinite(problem.distance(tuned)):
        return 0.0
    return scaled_ns(known[tuned], problem)


def scaled_ns(entry: Entry, problem: Problem) -> float:
    """Ns of a kernel on another problem than it was measured on, by the number of workgroups."""
    groups, measured = (
        math.prod(entry.signature.grid.evaluate(p)) for p in (problem, entry.problem)
    )
    return entry.median_ns * groups / measured


def _measured(
    bundle: Bundle, family: str, precision: str, problem: Problem, layouts: Layouts
) -> dict[Problem, Entry]:
    """Entries with a median, by problem, of the kernels that serve this one."""
    return {
        tuned: entry
        for tuned, entry in bundle.problems(family, precision, layouts, problem).items()
        if entry.median_ns > 0
    }
