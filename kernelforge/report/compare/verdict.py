"""Which differences between two sets of measurements are more than noise.

Two runs of the same kernels never agree exactly, and among a hundred of them some differ much. So
the noise within each run, the noise between runs and chance, which has as many tries as there are
rows, must be beaten.

* Within: the standard error of a median from its spread. A spread of three samples says little, so
  it is drawn toward the usual spread of all rows, as if `PRIOR` more samples had had that one.
  Source: G. K. Smyth, Linear models and empirical Bayes methods, 2004 (moderated t).
* Between: at least `RUN_NOISE`, and what the device's own ceilings moved by.
* Both together are scaled by how the rows of unchanged kernels really moved: the median of their
  moves in units of the error that is expected of them. Between unlike devices or drivers such
  moves are no noise, and do not count.
  Source: B. Efron, Large-scale simultaneous hypothesis testing: the choice of a null hypothesis,
  2004 (empirical null).
* Chance: intervals of all rows of a kind together cover with 95 % (Z. Sidak, 1967).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from kernelforge.report.compare.sides import LEAST_ROUNDS, Key, Side, Timing

CONFIDENCE = 0.95
RUN_NOISE = 0.015
"""Standard deviation of the logarithm by which a quiet device's runs differ."""
LEAST = 0.02
"""A change smaller than this is none, however well it is known."""
PRIOR = 4
USUAL = 0.02
"""Relative spread that is taken where no row tells one."""
_TO_DEVIATION = 1.4826
_OF_MEDIAN = 1.2533
_THIRD_QUARTER = NormalDist().inv_cdf(0.875)
_OTHERS = 8
"""Rows besides its own from which on they tell how much runs differ."""
_LEAST_SCALE = 0.25
"""However still the other rows are, no error is taken to be less than this part of it."""
_TOGETHER = 5


@dataclass(frozen=True)
class Row:
    """One kernel or one test of a model, on both sides.

    Attributes:
        kind: "kernel" or "model".
        name: for people.
        first: on side A.
        second: on side B.
        ratio: time on B over time on A: above 1 is slower.
        low: of the interval that holds for all rows together.
        high: see `low`.
        verdict: "slower", "faster", or "" where it may be noise.
    """

    kind: str
    name: str
    first: Timing
    second: Timing
    ratio: float
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
        found = [row.name for row in self.slower if row.ratio > 1 + above]
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
    keys = [key for key in a if key in b]
    moves = [math.log(b[key].value / a[key].value) for key in keys]
    usual = _usual_spread([side[key].spread for key in keys for side in (a, b)])
    whole = _together(kind, moves, moved)
    alike = [a[key].what == b[key].what for key in keys]
    center = median(moves) if whole and whole.verdict else 0.0
    errors = [
        math.hypot(_error(a[key], usual), _error(b[key], usual), max(RUN_NOISE, moved))
        for key in keys
    ]
    away = [abs(x - center) / error for x, error in zip(moves, errors, strict=True)]
    rows = []
    for i, key in enumerate(keys):
        others = [z for j, z in enumerate(away) if j != i and alike[j]]
        scale = 1.0
        if same and len(others) >= _OTHERS:
            scale = max(_width(others), _LEAST_SCALE)
        freedom = PRIOR + _rounds(a[key]) + _rounds(b[key]) - 2
        error = max(scale * errors[i], RUN_NOISE, moved)
        reach = error * _quantile(CONFIDENCE ** (1 / len(keys)), freedom)
        low, high = moves[i] - reach, moves[i] + reach
        rows.append(
            Row(
                kind,
                b[key].name,
                a[key],
                b[key],
                math.exp(moves[i]),
                math.exp(low),
                math.exp(high),
                _verdict(moves[i], low, high, LEAST),
            )
        )
    rows.sort(key=lambda row: (-row.ratio, row.name))
    return rows, [whole] if whole else []


def _width(moves: Sequence[float]) -> float:
    """Standard deviation of moves without their signs, from their middle and their third quarter.

    A quarter of the rows may have changed for a reason and does not count.
    """
    ordered = sorted(moves)
    return max(_TO_DEVIATION * median(ordered), ordered[3 * len(ordered) // 4] / _THIRD_QUARTER)


def _together(kind: str, moves: Sequence[float], moved: float) -> Together | None:
    """The median move; a device that slows everything down shows here and nowhere else."""
    if len(moves) < _TOGETHER:
        return None
    middle = median(moves)
    spread = _TO_DEVIATION * median([abs(x - middle) for x in moves])
    error = math.hypot(_OF_MEDIAN * spread / math.sqrt(len(moves)), max(RUN_NOISE, moved))
    reach = error * _quantile(CONFIDENCE, len(moves) - 1)
    low, high = middle - reach, middle + reach
    verdict = _verdict(middle, low, high, LEAST)
    return Together(kind, len(moves), math.exp(middle), math.exp(low), math.exp(high), verdict)


def _verdict(move: float, low: float, high: float, least: float) -> str:
    if low > 0 and math.expm1(move) > least:
        return "slower"
    return "faster" if high < 0 and math.expm1(-move) > least else ""


def _rounds(timing: Timing) -> int:
    return timing.samples if timing.samples > 1 else LEAST_ROUNDS


def _usual_spread(spreads: Sequence[float]) -> float:
    known = [s for s in spreads if math.isfinite(s) and s > 0]
    return median(known) if known else USUAL


def _error(timing: Timing, usual: float) -> float:
    """Relative standard error of a median, its spread drawn toward the usual one."""
    rounds = _rounds(timing)
    own = rounds - 1 if math.isfinite(timing.spread) and timing.samples != 1 else 0
    squares = PRIOR * usual**2 + (own * timing.spread**2 if own else 0.0)
    deviation = _TO_DEVIATION * math.sqrt(squares / (PRIOR + own))
    return _OF_MEDIAN * deviation / math.sqrt(rounds)


def _quantile(confidence: float, freedom: int) -> float:
    """Of Student's t, two-sided.

    Source: M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 26.7.5; from six
    degrees of freedom on, at the confidences used here, within a few per cent.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom ** (i + 1) for i, term in enumerate(terms))


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
    names = [t.name for key, t in side.kernels.items() if key not in other.kernels]
    names += [t.name for key, t in side.models.items() if key not in other.models]
    return tuple(names)
