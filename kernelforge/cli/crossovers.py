"""What `inspect` says of families that rival each other over the number of tokens."""

from __future__ import annotations

from itertools import groupby

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle
from kernelforge_runtime.bundle.crossover import RIVALS, Rival, fastest


def crossovers(bundle: Bundle) -> list[str]:
    """A line for each problem of which both families were measured.

    Such as `wkv7 f32 B1.H12.N64: wkv7 up to 16 tokens, wkv7_chunk from 64`.
    """
    precisions = sorted({entry.precision for entry in bundle.entries})
    return [
        line
        for family, rivals in RIVALS.items()
        for rival in rivals
        if rival.along
        for precision in precisions
        for line in _lines(bundle, family, rival, precision)
    ]


def _lines(bundle: Bundle, family: str, rival: Rival, precision: str) -> list[str]:
    both = _measured(bundle, family, precision) & _measured(bundle, rival.family, precision)
    groups: dict[str, list[Problem]] = {}
    for problem in sorted(both, key=lambda p: p["T"]):
        # Of what changes along with the tokens, only whether it does tells problems apart.
        rest = {n: v for n, v in problem.items() if n not in rival.along or v != problem["T"]}
        groups.setdefault(str(Problem(**rest)), []).append(problem)
    return [
        f"{family} {precision} {rest}: {_winners(bundle, family, rival, precision, problems)}"
        for rest, problems in groups.items()
    ]


def _winners(
    bundle: Bundle, family: str, rival: Rival, precision: str, problems: list[Problem]
) -> str:
    names = (family, rival.family)
    won = [(p["T"], fastest([bundle], names, precision, p)) for p in problems]
    parts: list[str] = []
    for name, run in groupby(won, key=lambda pair: pair[1]):
        tokens = [count for count, _ in run]
        parts.append(f"{name} from {tokens[0]}" if parts else f"{name} up to {tokens[-1]} tokens")
    if len(parts) == 1:
        return f"{won[0][1]} at {', '.join(str(count) for count, _ in won)} tokens"
    return ", ".join(parts)


def _measured(bundle: Bundle, family: str, precision: str) -> set[Problem]:
    found = bundle.problems(family, precision)
    return {problem for problem, entry in found.items() if entry.median_ns > 0}
