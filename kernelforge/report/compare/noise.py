"""How far two measurements of one kernel lie apart though nothing changed.

* Within a run: the standard error of a median from its spread. A spread of three samples says
  little, so it is drawn toward the usual spread of all rows, as if `PRIOR` more samples had had it.
  Source: G. K. Smyth, Linear models and empirical Bayes methods, 2004 (moderated t).
* Between runs: what the device's own ceilings moved by, and how the rows of unchanged kernels
  really moved, in units of the error that is expected of them. The tail counts too, on the side
  that has less of one: a real change goes one way, noise goes both. Between unlike devices or
  drivers such moves are no noise, and do not count.
  Source: B. Efron, Large-scale simultaneous hypothesis testing: the choice of a null hypothesis,
  2004 (empirical null).
* Where a kernel's default moved as it did, and that is so of others too, the machine moved.
* Few rows cannot tell: then runs are taken to differ by `BETWEEN` times the usual spread within.
* One measurement on both sides, as in a journal and its copy, has the same noise on both: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median

from kernelforge.report.compare.timing import LEAST_ROUNDS, Timing

RUN_NOISE = 0.015
"""Standard deviation of the logarithm by which a quiet device's runs differ."""
BETWEEN = 3.0
"""Noise between runs over noise within one, measured on a busy machine's software device."""
PRIOR = 4
USUAL = 0.02
"""Relative spread that is taken where no row tells one."""
TO_DEVIATION = 1.4826
OF_MEDIAN = 1.2533
_THIRD_QUARTER = NormalDist().inv_cdf(0.875)
_LAST_TENTH = NormalDist().inv_cdf(0.95)
_OTHERS = 8
"""Rows besides its own from which on they tell how much runs differ."""
_MANY = 200
_TAIL = 8
"""Rows that moved to one side from which on they tell how far noise reaches there."""
_LEAST_SCALE = 0.25
"""However still the other rows are, no error is taken to be less than this part of it."""
_LEAST_FREEDOM = 6
_PATTERN = 0.0011
"""Relative spreads that differ by less may be one, rounded to a tenth of a per cent."""
_SAME = 0.001
"""Relative error of what is one measurement on both sides."""

Pair = tuple[Timing, Timing]


class Noise:
    """What is expected of each row of one kind.

    Args:
        pairs: of every row, its timings on both sides.
        moves: of every row, the logarithm of B over A.
        moved: by which the device itself moved, a standard deviation of logarithms.
        same: whether both sides are of one device and driver.

    Attributes:
        floor: standard deviation by which all rows may move though nothing changed.
    """

    def __init__(
        self, pairs: Sequence[Pair], moves: Sequence[float], moved: float, same: bool
    ) -> None:
        self._pairs, self._moves, self._same = pairs, moves, same
        self._usual = _usual_spread([t.spread for pair in pairs for t in pair])
        self._floor = max(RUN_NOISE, moved)
        self._rule = max(BETWEEN * TO_DEVIATION * self._usual, self._floor)
        still = [_is_still(pair, move) for pair, move in zip(pairs, moves, strict=True)]
        count = sum(still)
        # The very same time is one measurement too, and tells nothing of how runs differ.
        self._one = [
            still[i] or _is_one(*pair, 2 * (count - still[i]) > len(pairs) - 1)
            for i, pair in enumerate(pairs)
        ]
        self._errors = [self._expected(*pair) for pair in pairs]
        # Of which nothing changed but the run: they tell how much runs differ.
        self._still = [
            same and not one and pair[0].what == pair[1].what
            for one, pair in zip(self._one, pairs, strict=True)
        ]
        self._plain = [*moves]
        self._defaults = [_default(*pair) for pair in pairs]
        self._held = [x - y for x, y in zip(moves, self._defaults, strict=True)]
        self._holds = self._default_tells()
        self.floor = self._floor if len(pairs) >= _OTHERS else self._rule
        self._scales: dict[bool, float] = {}
        self._known: dict[bool, list[int]] = {}

    def together(self) -> float:
        """The median move; less that of the defaults, where these moved too."""
        middle = median(self._moves)
        held = [x for x, still in zip(self._held, self._still, strict=True) if still]
        held = [x for x in held if math.isfinite(x)]
        return _explained(middle, median(held)) if 2 * len(held) > len(self._moves) else middle

    def around(self, center: float) -> None:
        """Says by how much all rows moved: that is no noise of a single one."""
        self._plain = [x - center for x in self._moves]

    def steady(self, at: int) -> float:
        """A row's move; less that of the default beside it, where that takes noise away."""
        move, held = self._moves[at], self._held[at]
        return _explained(move, held) if self._is_held(at) else move

    def error(self, at: int) -> tuple[float, float]:
        """Standard deviation of a row's steady move if nothing changed; degrees of freedom."""
        first, second = self._pairs[at]
        if self._one[at]:
            return math.hypot(first.rounding, second.rounding, _SAME), math.inf
        if len(self._others(at)) >= _OTHERS:
            freedom = PRIOR + _rounds(first) + _rounds(second) - 2
            return max(self._scale(at) * self._errors[at], self._floor), freedom
        return math.hypot(self._errors[at], self._between(at)), _LEAST_FREEDOM

    def _others(self, at: int) -> list[int]:
        """Other rows of which nothing changed but the run; among very many its own may be."""
        held = self._is_held(at)
        if held not in self._known:
            moves = self._held if held else self._plain
            self._known[held] = [
                j for j, x in enumerate(moves) if self._still[j] and math.isfinite(x)
            ]
        found = self._known[held]
        return found if len(found) >= _MANY else [j for j in found if j != at]

    def _scale(self, at: int) -> float:
        """Of the expected errors, from the other rows; of very many, one more changes nothing."""
        held = self._is_held(at)
        if held in self._scales:
            return self._scales[held]
        moves, others = self._held if held else self._plain, self._others(at)
        scale = max(_width([moves[j] / self._errors[j] for j in others]), _LEAST_SCALE)
        if len(others) >= _MANY:
            self._scales[held] = scale
        return scale

    def _between(self, at: int) -> float:
        """Noise between runs where rows are few: by a rule, and what these and defaults moved."""
        held = self._is_held(at)
        moves = self._held if held else self._plain
        seen = [moves[j] for j in self._others(at)]
        if self._same and not held:
            seen += [x for x in self._defaults if math.isfinite(x)]
        squares = PRIOR * self._rule**2 + math.fsum(x**2 for x in seen)
        return max(self._rule, math.sqrt(squares / (PRIOR + len(seen))))

    def _default_tells(self) -> bool:
        """Whether kernels and their defaults move together, so that the rest is less."""
        known = [j for j, x in enumerate(self._held) if self._still[j] and math.isfinite(x)]
        if len(known) <= 1:
            return False
        return _width([self._held[j] for j in known]) < _width([self._plain[j] for j in known])

    def _is_held(self, at: int) -> bool:
        return self._holds and not self._one[at] and math.isfinite(self._held[at])

    def _expected(self, first: Timing, second: Timing) -> float:
        return math.hypot(_error(first, self._usual), _error(second, self._usual), self._floor)


def quantile(confidence: float, freedom: float) -> float:
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


def _default(first: Timing, second: Timing) -> float:
    """The logarithm by which the default moved; NaN where it is not known, or is the kernel."""
    known = all(t.beside > 0 and t.beside != t.value for t in (first, second))
    return math.log(second.beside / first.beside) if known else math.nan


def _explained(move: float, held: float) -> float:
    """What the default leaves of a move: no more than it was, and none the other way."""
    sign = math.copysign(1.0, move)
    return sign * min(max(sign * held, 0.0), abs(move))


def _is_still(pair: Pair, move: float) -> bool:
    """Whether both sides have the very same time, but for rounding."""
    return abs(move) <= 1e-9 + 4 * math.hypot(pair[0].rounding, pair[1].rounding)


def _is_one(first: Timing, second: Timing, copied: bool) -> bool:
    """Whether two timings are one measurement, whatever its time says.

    Args:
        first: on side A.
        second: on side B.
        copied: whether most of the other rows are still, as they never are in two runs.
    """
    if first.samples and second.samples and first.samples != second.samples:
        return False
    known = bool(first.run and second.run)
    if (known and first.run != second.run) or not (known or copied):
        return False
    a, b = first.spread, second.spread
    if not (math.isfinite(a) and math.isfinite(b)):
        return not math.isfinite(a) and not math.isfinite(b)
    return abs(a - b) <= _PATTERN or abs(a * first.value - b * second.value) <= _SAME * (
        min(a * first.value, b * second.value)
    )


def _width(moves: Sequence[float]) -> float:
    """Standard deviation of moves, from their middle, their third quarter, and the lesser tail.

    A quarter of the rows may have changed for a reason, and any number one way, and does not count.
    """
    ordered = sorted(abs(x) for x in moves)
    found = [TO_DEVIATION * median(ordered), ordered[3 * len(ordered) // 4] / _THIRD_QUARTER]
    sides = [sorted(abs(x) for x in moves if sign * x > 0) for sign in (-1, 1)]
    if min(map(len, sides)) >= _TAIL:
        found.append(min(side[9 * len(side) // 10] for side in sides) / _LAST_TENTH)
    return max(found)


def _rounds(timing: Timing) -> int:
    return timing.samples if timing.samples > 1 else LEAST_ROUNDS


def _usual_spread(spreads: Sequence[float]) -> float:
    known = [s for s in spreads if math.isfinite(s) and s > 0]
    return median(known) if known else USUAL


def _error(timing: Timing, usual: float) -> float:
    """Relative standard error of a median, its spread drawn toward the usual one; and rounding."""
    rounds = _rounds(timing)
    own = rounds - 1 if math.isfinite(timing.spread) and timing.samples != 1 else 0
    squares = PRIOR * usual**2 + (own * timing.spread**2 if own else 0.0)
    deviation = TO_DEVIATION * math.sqrt(squares / (PRIOR + own))
    return math.hypot(OF_MEDIAN * deviation / math.sqrt(rounds), timing.rounding)
