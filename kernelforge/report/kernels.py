"""What became of every kernel: rows from the tuning journal, and from a bundle where that is all.

The journal says more (failed trials, the search's course), so where both know a problem it is
asked; a bundle alone still tells the winner, its time and the default's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from kernelforge.errors import SpaceError
from kernelforge.families import get_family
from kernelforge.measure.measurement import Measurement
from kernelforge.measure.roofline import HasCeilings, Rate, rate
from kernelforge.measure.statistics import median
from kernelforge.tune.crossing import PHASE
from kernelforge.tune.finals import choose
from kernelforge.tune.objective import first_good
from kernelforge.tune.saving import Saving, saving_of
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Entry
from kernelforge_runtime.errors import KernelForgeError

Key = tuple[str, str, str]
CROSSED = "this run"
"""Origin of a winner that was another problem's."""
NO_RATE = Rate(math.nan, math.nan)


@dataclass(frozen=True)
class KernelRow:
    """One tuned problem. Times in ns per dispatch, NaN where not measured.

    Attributes:
        variant: the winner's parameters, without family and precision.
        default_ns: time of the family's default variant, measured in turns with the winner.
        trials: variants tried.
        failed: of these, how many gave no time.
        history: time of every trial in order; NaN where it failed. Empty without a journal.
        cost: (operations, bytes) of one dispatch; None where the family is not known any more.
        rate: what the time means, held against the ceilings.
        clock: "timestamp" or "host"; empty where a bundle is all there is.
        good_trial: number, from 1, of the trial that first came to 95 % of the winner's speed; 0
            where unknown.
        saving: what was known from elsewhere saved the search; None where that cannot be told.
        origin: who proposed the winner, see `Measurement`; empty where unknown.
        samples: behind the median; 0 where unknown.
        generic_ns: time of the generic bundle's kernel; NaN where it was not measured here.
        seed: of the inputs that the winner was verified with: no two measurements share it; 0 where
            unknown.
        timed: by their parameters, what else was measured with the winner, and it: seed and ns.
    """

    family: str
    precision: str
    problem: str
    variant: str
    median_ns: float
    spread_ns: float
    default_ns: float
    trials: int
    failed: int = 0
    history: tuple[float, ...] = ()
    cost: tuple[float, float] | None = None
    rate: Rate = NO_RATE
    clock: str = ""
    good_trial: int = 0
    saving: Saving | None = None
    origin: str = ""
    samples: int = 0
    generic_ns: float = math.nan
    seed: int = 0
    timed: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`gemv f16 M768.K192.S1`."""
        return f"{self.family} {self.precision} {self.problem}"

    @property
    def over_generic(self) -> float:
        """How many times faster than the generic bundle's kernel; NaN where not measured."""
        return self.generic_ns / self.median_ns

    @property
    def speedup(self) -> float:
        """How many times faster than the default; NaN where that could not be measured."""
        return self.default_ns / self.median_ns if self.default_ns > 0 else math.nan


def kernel_rows(
    measurements: Iterable[Measurement],
    entries: Sequence[Entry],
    ceilings: HasCeilings | None,
    generic: Mapping[tuple[str, str], Set[str]] | None = None,
) -> list[KernelRow]:
    """A row per tuned problem, ordered by family, precision and problem.

    Args:
        measurements: of one device, in the order of the journal.
        entries: of the device's bundle.
        ceilings: what the device can do at best.
        generic: names of the generic bundle's variants, by family and precision.
    """
    # Of several layouts the fastest: the last one that is put in.
    slowest_first = sorted(entries, key=lambda e: -e.median_ns)
    packed = {(e.family, e.precision, _plain(str(e.problem))): e for e in slowest_first}
    by_key: dict[Key, list[Measurement]] = {}
    for measurement in measurements:
        key = measurement.family, measurement.precision, measurement.problem
        by_key.setdefault(key, []).append(measurement)
    rows: dict[Key, KernelRow] = {}
    for key, group in by_key.items():
        row = _from_journal(key, group, ceilings, (generic or {}).get(key[:2], frozenset()))
        if row is not None:
            rows[*key[:2], _plain(key[2])] = row
    for plain, entry in packed.items():
        if plain not in rows and entry.median_ns > 0:
            rows[plain] = _from_entry(entry, ceilings)
    return sorted(rows.values(), key=lambda r: (r.family, r.precision, _order(r.problem)))


def _from_journal(
    key: Key,
    group: Sequence[Measurement],
    ceilings: HasCeilings | None,
    generic: Set[str],
) -> KernelRow | None:
    finals = _last_finals(group)
    own = choose(finals)
    if own is None:
        return None
    best = _crossed(group, own)
    known = next((m.template_sha256 for m in finals if m.template_sha256), "")
    found = [
        m
        for m in group
        if m.phase == "trial" and m.driver == best.driver and m.template_sha256 in (known, "")
    ]
    cost = _cost(*key)
    return KernelRow(
        *key,
        variant=_parameters(best.variant),
        median_ns=best.median_ns,
        spread_ns=_spread_ns(best),
        default_ns=finals[0].median_ns if finals[0].ok else math.nan,
        trials=len(found),
        failed=sum(not m.ok for m in found),
        history=tuple(m.median_ns if m.ok else math.nan for m in found),
        cost=cost,
        rate=_rate(cost, best.median_ns, ceilings),
        clock=best.clock,
        good_trial=first_good(found, best.variant),
        saving=saving_of(found, best.variant),
        origin=CROSSED
        if best is not own
        else next((m.origin for m in found if m.variant == best.variant), ""),
        samples=len(best.samples_ns),
        generic_ns=_of_generic(group, finals, generic),
        seed=best.seed,
        timed=_timed(group, finals),
    )


def _from_entry(entry: Entry, ceilings: HasCeilings | None) -> KernelRow:
    cost = _cost(entry.family, entry.precision, str(entry.problem))
    return KernelRow(
        family=entry.family,
        precision=entry.precision,
        problem=str(_in_order(entry.family, entry.problem)),
        variant=_parameters(entry.variant),
        median_ns=entry.median_ns,
        spread_ns=entry.spread_ns,
        default_ns=entry.default_ns if entry.default_ns > 0 else math.nan,
        trials=entry.trials,
        seed=entry.verified.seed,
        cost=cost,
        rate=_rate(cost, entry.median_ns, ceilings),
    )


def _of_generic(
    group: Sequence[Measurement], finals: Sequence[Measurement], generic: Set[str]
) -> float:
    """Of the finals if it took part, else its newest trial; of several the fastest."""
    for found in (finals, [m for m in group if m.phase == "trial"]):
        newest = {m.variant: m.median_ns for m in found if m.ok and m.variant in generic}
        if newest:
            return min(newest.values())
    return math.nan


def _timed(
    group: Sequence[Measurement], finals: Sequence[Measurement]
) -> dict[str, tuple[int, float]]:
    others = [m for m in group if m.phase == PHASE]
    return {_parameters(m.variant): (m.seed, m.median_ns) for m in [*others, *finals] if m.ok}


def _crossed(group: Sequence[Measurement], own: Measurement) -> Measurement:
    """The winner of another problem where that was faster here than the own one, else the own.

    It was timed in turns with the own one after its finals, and stands on the scale of these; it
    is what a bundle has of this problem. What older finals were compared with does not count.
    """
    after: list[Measurement] = []
    for m in group:
        if m.phase == "final":
            after.clear()
        elif m.phase == PHASE and m.ok and (m.driver, m.template_sha256) == (
            own.driver, own.template_sha256
        ):  # fmt: skip
            after.append(m)
    return min([own, *after], key=lambda m: m.median_ns)


def _spread_ns(measurement: Measurement) -> float:
    """On the median's scale, which the samples of a crossed winner are not on."""
    middle = median(measurement.samples_ns)
    scale = measurement.median_ns / middle if middle > 0 else 1.0
    return measurement.spread_ns * scale


def _last_finals(group: Sequence[Measurement]) -> list[Measurement]:
    """The last round of finals: the default's first, each variant once."""
    finals: dict[str, Measurement] = {}
    ended = True
    for measurement in group:
        if measurement.phase != "final":
            ended = True
            continue
        if ended or measurement.variant in finals:
            finals, ended = {}, False
        finals[measurement.variant] = measurement
    return [*finals.values()]


def _rate(cost: tuple[float, float] | None, ns: float, ceilings: HasCeilings | None) -> Rate:
    return NO_RATE if cost is None else rate(cost, ns, ceilings)


def _cost(family: str, precision: str, problem: str) -> tuple[float, float] | None:
    """What a dispatch costs by the family's declaration; None where that is gone or has changed."""
    try:
        declared = get_family(family)
        sizes = declared.completed(Problem.parse(problem))
        if declared.refuses(sizes) is not None:
            return None
        flops, moved = declared.cost(sizes, declared.precision(precision))
        return float(flops), float(moved)
    except (KernelForgeError, KeyError, ValueError, ArithmeticError):
        return None  # a line may be of another time, or of somebody else's making


def _in_order(family: str, problem: Problem) -> Problem:
    """The problem with its dimensions in the family's order: manifests sort them."""
    try:
        return Problem(**{name: problem[name] for name in get_family(family).dims})
    except (SpaceError, KernelForgeError, KeyError):
        return problem


def _plain(problem: str) -> str:
    """The same text for equal problems, whatever the order of their dimensions."""
    return ".".join(sorted(problem.split(".")))


def _order(problem: str) -> list[tuple[str, int]]:
    """By dimensions and their sizes; what has another form by its text."""
    found = [re.fullmatch(r"([A-Z])([0-9]{1,18})", term) for term in problem.split(".")]
    return [(m[1], int(m[2])) if m else (term, 0)
            for m, term in zip(found, problem.split("."), strict=True)]  # fmt: skip


def _parameters(variant: str) -> str:
    return variant.split("/", 2)[-1]
