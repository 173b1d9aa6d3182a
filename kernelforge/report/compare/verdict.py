"""Which differences between two sets of measurements are more than noise.

Two runs of the same kernels never agree exactly, and among a hundred of them some differ much. So
the noise within each run, the noise between runs and chance, which has as many tries as there are
rows, must be beaten.

* Within: the standard error of a median from its spread. A spread of three samples says little, so
  it is drawn toward the usual spread of all rows, as if `PRIOR` more samples had had that one.
  Source: G. K. Smyth, Linear models and empirical Bayes methods, 2004 (moderated t).
* Between: see `noise`.
* Chance: intervals of all rows of a kind together cover with 95 % (Z. Sidak, 1967).
* A row that is one measurement on both sides, as in a copy of a journal, has no noise at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from kernelforge.report.compare.noise import OF_MEDIAN, TO_DEVIATION, Noise, quantile
from kernelforge.report.compare.timing import LEN_PROBLEM, Key, Side, Timing, same_kernel

CONFIDENCE = 0.95
LEAST = 0.02
"""A change smaller than this is none, however well it is known."""
_TOGETHER = 5
"""Rows that are judged as a whole, and independent states of the machine in one run, at most."""


@dataclass(frozen=True)
class Row:
    """One kernel or one test of a model, on both sides.

    Attributes:
        kind: "kernel" or "model".
        name: for people.
        first: on side A.
        second: on side B.
        ratio: time on B over time on A: above 1 is slower.
        steady: the same, over how the default beside it moved, where that tells of the machine.
        low: of `steady`'s interval, which holds for all rows together.
        high: see `low`.
        verdict: "slower", "faster", or "" where it may be noise.
    """

    kind: str
    name: str
    first: Timing
    second: Timing
    ratio: float
    steady: float
    low: float
    high: float
    verdict: str

    @property
    def changed(self) -> bool:
        """Whether the kernel is another one, or the bundle."""
        return self.first.what != self.second.what


@dataclass(frozen=True)
class Together:
    """All rows of a kind: their median ratio with its 95 % interval, and its verdict."""

    kind: str
    count: int
    ratio: float
    low: float
    high: float
    verdict: str

    @property
    def move(self) -> float:
        """Logarithm of the ratio."""
        return math.log(self.ratio)


@dataclass(frozen=True)
class Comparison:
    """Two sides, row by row.

    Attributes:
        first: side A.
        second: side B.
        rows: kernels, then models; in each the slowest first.
        together: of each kind that has enough rows.
        only_first: names that only side A has.
        only_second: names that only side B has.
        device_moved: standard deviation by which the device itself moved, from its ceilings; 0
            where that was not measured or the devices differ.
    """

    first: Side
    second: Side
    rows: tuple[Row, ...]
    together: tuple[Together, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    device_moved: float

    @property
    def slower(self) -> tuple[Row, ...]:
        """What regressed."""
        return tuple(row for row in self.rows if row.verdict == "slower")

    @property
    def faster(self) -> tuple[Row, ...]:
        """What improved."""
        return tuple(row for row in self.rows if row.verdict == "faster")

    def failures(self, above: float) -> list[str]:
        """Names of what is slower beyond noise and by more than this share."""
        found = [row.name for row in self.slower if row.steady > 1 + above]
        found += [
            f"all {t.kind}s together"
            for t in self.together
            if t.verdict == "slower" and t.ratio > 1 + above
        ]
        return found


def compare(first: Side, second: Side) -> Comparison:
    """Holds side B against side A."""
    same = _same_device(first, second)
    moved = _device_moved(first, second) if same else 0.0
    rows: list[Row] = []
    together: list[Together] = []
    for kind, a, b in (
        ("kernel", first.kernels, second.kernels),
        ("model", first.models, second.models),
    ):
        found, whole = _compare_kind(kind, a, b, moved, same)
        rows += found
        together += whole
    return Comparison(
        first,
        second,
        tuple(rows),
        tuple(together),
        _only(first, second),
        _only(second, first),
        moved,
    )


def _compare_kind(
    kind: str,
    a: Mapping[Key, Timing],
    b: Mapping[Key, Timing],
    moved: float,
    same: bool,
) -> tuple[list[Row], list[Together]]:
    keys = _in_common(a, b)
    pairs = [(a[key], same_kernel(a[key], b[key])) for key in keys]
    moves = [math.log(second.value / first.value) for first, second in pairs]
    known = Noise(pairs, moves, moved, same)
    whole = _together(kind, moves, known)
    known.around(whole.move if whole and whole.verdict else 0.0)
    rows = []
    for i, key in enumerate(keys):
        error, freedom = known.error(i)
        reach = error * quantile(CONFIDENCE ** (1 / len(keys)), freedom)
        move = known.steady(i)
        low, high = move - reach, move + reach
        rows.append(
            Row(
                kind,
                b[key].name,
                *pairs[i],
                math.exp(moves[i]),
                math.exp(move),
                math.exp(low),
                math.exp(high),
                _verdict(move, low, high),
            )
        )
    rows.sort(key=lambda row: (row.verdict != "slower", -row.steady, -row.ratio, row.name))
    return rows, [whole] if whole else []


def _in_common(a: Mapping[Key, Timing], b: Mapping[Key, Timing]) -> list[Key]:
    """Keys of both; where both tell the layouts of a problem apart, its best is one of these."""
    keys = [key for key in a if key in b]
    apart = {key[:-1] for key in keys}
    return [key for key in keys if key not in apart]


def _together(kind: str, moves: Sequence[float], known: Noise) -> Together | None:
    """The median move; a device that slows everything down shows here and nowhere else."""
    if len(moves) < _TOGETHER:
        return None
    middle = known.together()
    center = median(moves)
    spread = TO_DEVIATION * median([abs(x - center) for x in moves])
    # Kernels that were measured one after another met the same state of the machine.
    error = math.hypot(OF_MEDIAN * spread / math.sqrt(_TOGETHER), known.floor)
    reach = error * quantile(CONFIDENCE, len(moves) - 1)
    low, high = middle - reach, middle + reach
    verdict = _verdict(middle, low, high)
    return Together(kind, len(moves), math.exp(middle), math.exp(low), math.exp(high), verdict)


def _verdict(move: float, low: float, high: float) -> str:
    if low > 0 and math.expm1(move) > LEAST:
        return "slower"
    return "faster" if high < 0 and math.expm1(-move) > LEAST else ""


def _same_device(first: Side, second: Side) -> bool:
    """Whether both sides' facts allow it: what is not known is no difference."""
    return all(
        not first.facts.get(key) or not second.facts.get(key)
        or first.facts[key] == second.facts[key]
        for key in ("device", "driver", "processor")
    )  # fmt: skip


def _device_moved(first: Side, second: Side) -> float:
    shared = [k for k in first.ceilings if first.ceilings[k] > 0 and second.ceilings.get(k, 0) > 0]
    if not shared:
        return 0.0
    return median([abs(math.log(second.ceilings[k] / first.ceilings[k])) for k in shared])


def _only(side: Side, other: Side) -> tuple[str, ...]:
    names = [t.name for key, t in side.kernels.items() if _is_missing(key, other)]
    names += [t.name for key, t in side.models.items() if key not in other.models]
    return tuple(names)


def _is_missing(key: Key, other: Side) -> bool:
    """A layout is missing only where the other side tells this problem's layouts apart."""
    if key in other.kernels or len(key) == LEN_PROBLEM:
        return key not in other.kernels
    problem = key[:LEN_PROBLEM]
    return any(len(k) == len(key) and k[:LEN_PROBLEM] == problem for k in other.kernels)
