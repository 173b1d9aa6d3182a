"""What `inspect` says of families that rival each other over the number of tokens."""

from __future__ import annotations

from itertools import groupby

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle
from kernelforge_runtime.bundle.crossover import RIVALS, Rival, fastest


def crossovers(bundle: Bundle) -> list[str]:
    """A line for each problem of which a family and one of its rivals were measured.

    Such as `wkv7 f32 B1.H12.N64: wkv7 up to 16 tokens, wkv7_chunk from 64`.
    """
    precisions = sorted({entry.precision for entry in bundle.entries})
    return [
        line
        for family, rivals in RIVALS.items()
        for precision in precisions
        for line in _lines(bundle, family, [r for r in rivals if r.along], precision)
    ]


def _lines(bundle: Bundle, family: str, rivals: list[Rival], precision: str) -> list[str]:
    usual = _measured(bundle, family, precision)
    forms: dict[Problem, list[str]] = {}
    groups: dict[str, list[Problem]] = {}
    for rival in rivals:
        for problem in usual & _measured(bundle, rival.family, precision):
            forms.setdefault(problem, [family]).append(rival.family)
    for problem in sorted(forms, key=lambda p: p["T"]):
        # Of what changes along with the tokens, only whether it does tells problems apart.
        along = {name for rival in rivals for name in rival.along}
        rest = {n: v for n, v in problem.items() if n not in along or v != problem["T"]}
        groups.setdefault(str(Problem(**rest)), []).append(problem)
    return [
        f"{family} {precision} {rest}: {_winners(bundle, forms, precision, problems)}"
        for rest, problems in groups.items()
    ]


def _winners(
    bundle: Bundle, forms: dict[Problem, list[str]], precision: str, problems: list[Problem]
) -> str:
    won = [(p["T"], fastest([bundle], forms[p], precision, p)) for p in problems]
    parts: list[str] = []
    for name, run in groupby(won, key=lambda pair: pair[1]):
        tokens = [count for count, _ in run]
        parts.append(f"{name} from {tokens[0]}" if parts else f"{name} up to {tokens[-1]} tokens")
    if len(parts) == 1:
        return f"{won[0][1]} at {', '.join(str(count) for count, _ in won)} tokens"
    return ", ".join(parts)


def _measured(bundle: Bundle, family: str, precision: str) -> set[Problem]:
    return {
        e.problem for e in bundle.manifest.entries
        if (e.family, e.precision, e.signature.layouts) == (family, precision, ())
        and e.median_ns > 0
    }  # fmt: skip
