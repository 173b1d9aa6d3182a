"""Replays searches on recorded spaces, and scores them as the literature does.

The score is that of F. Willemsen et al., "A methodology for comparing optimization algorithms for
auto-tuning", Future Generation Computer Systems 159, 2024: how much of the way from the expected
best of random sampling to the optimum is won, averaged over the part of the search where random
sampling itself comes from half of the way to nearly there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.acquisition import Proposer, Strategy
from kernelforge.tune.experience import Experience
from kernelforge.tune.finished_runs import FinishedRun
from kernelforge.tune.guided import GuidedProposer
from kernelforge.tune.recorded import RecordedSpace
from kernelforge.tune.seeded import SeededProposer

Floats = NDArray[np.float64]

WINDOW = (0.5, 0.95)
"""Of the way from the median to the optimum, where the baseline enters and leaves the window."""
MARKS = (8, 25, 50, 100, 200)
"""Evaluations after which the best so far is reported; the last is the end of a search."""
GOOD = 0.95
"""Share of the optimum that counts as found."""
SCORING = 1
"""Raised when a figure of `Scored` comes to mean something else: older ones are scored anew."""


def replay(
    space: RecordedSpace,
    strategy: Strategy,
    evaluations: int,
    seed: int,
    experience: Experience | None = None,
) -> Floats:
    """[evaluations] best time in ms so far, one evaluation per configuration; inf before any works.

    Args:
        space: what is searched.
        strategy: of `acquisition`.
        evaluations: how many configurations are tried; at most the space's size.
        seed: of the search.
        experience: what other devices know, to begin with; see `guided`.
    """
    own = Proposer(space.encoded, (), strategy)
    proposer: SeededProposer | GuidedProposer = SeededProposer(own)
    if experience is not None:
        proposer = GuidedProposer(own, space.encoded, experience)
    times = space.times_ms
    seen: dict[int, float | None] = {}
    best = np.full(min(evaluations, len(times)), math.inf)
    so_far = math.inf
    for step in range(len(best)):
        # As in a live study: each proposal draws from its own stream.
        index = proposer.propose(seen, np.random.default_rng([seed, step]))
        assert index is not None
        seen[index] = float(times[index])
        so_far = min(so_far, float(times[index]))
        best[step] = so_far
    return best


def expected_best(space: RecordedSpace, evaluations: int) -> Floats:
    """[evaluations] expected best of so many configurations drawn at random, none twice.

    The i-th best of N is the best of n draws if it is among them and no better one is: with
    probability C(N - i, n - 1) / C(N, n), i from 1. Failures count as the worst time.
    """
    known = space.baselines.get(evaluations)
    if known is not None:
        return known
    times = np.sort(space.times_ms)
    times = np.where(np.isfinite(times), times, times[np.isfinite(times)].max())
    size = len(times)
    worse = size - np.arange(1.0, size + 1)
    found = np.empty(min(evaluations, size))
    chance = np.full(size, 1.0 / size)
    for n in range(1, len(found) + 1):
        found[n - 1] = chance @ times
        if n < size:  # one more draw
            chance *= np.maximum(worse - (n - 1), 0.0) * ((n + 1) / (n * (size - n)))
    space.baselines[evaluations] = found
    return found


def window(space: RecordedSpace, most: int) -> tuple[int, int]:
    """First and last evaluation, from 1, that count: where the baseline is within `WINDOW`.

    Args:
        space: what is searched. Where more than half of it is the optimum, its mean takes the place
            of the median.
        most: the last evaluation that may count.
    """
    times = space.times_ms[np.isfinite(space.times_ms)]
    middle = float(np.median(times))
    if not middle > space.optimum_ms:
        middle = float(times.mean())
    baseline = expected_best(space, most)
    if not _above(middle, space.optimum_ms):
        return 1, len(baseline)
    way = (middle - baseline) / (middle - space.optimum_ms)
    first = int(np.searchsorted(way, WINDOW[0])) + 1
    last = int(np.searchsorted(way, WINDOW[1])) + 1
    last = min(last, len(baseline))
    return min(first, last), last


def score(space: RecordedSpace, curves: Sequence[Floats], most: int) -> Floats:
    """[curves] P of each run: 0 is random sampling, 1 the optimum at once.

    NaN where random sampling has the optimum at once: there is nothing to win.
    """
    first, last = window(space, most)
    baseline, optimum = expected_best(space, most), space.optimum_ms
    counts = _above(baseline[:last], optimum)
    if np.any(counts[first - 1 :]):
        counts[: first - 1] = False
    elif not np.any(counts):
        return np.full(len(curves), math.nan)
    # Else a space of two or three: random sampling is at the optimum before the window begins.
    worst = float(space.times_ms[np.isfinite(space.times_ms)].max())
    gained = []
    for curve in curves:
        reached = np.where(np.isfinite(curve), curve, worst)[:last]
        won = (baseline[:last] - reached)[counts] / (baseline[:last] - optimum)[counts]
        gained.append(np.mean(won))
    return np.array(gained)


def _above(times: Floats | float, optimum: float) -> Any:
    """Whether times are longer than the optimum by more than what rounding makes."""
    return np.asarray(times) > optimum * (1.0 + 1e-12)


@dataclass(frozen=True)
class Scored:
    """How a strategy did on a space.

    Attributes:
        space: its name.
        digest: of the space; see `RecordedSpace.digest`.
        size: configurations in it.
        near_optimum: share of them within 5 % of the optimum.
        strategy: its name.
        seeds: runs.
        score: mean P of the runs; NaN where every configuration that works is as fast.
        spread: standard deviation of P between runs.
        share_at: evaluations -> mean share of the optimum's speed.
        evaluations_to_good: median evaluations until `GOOD` of the optimum; inf where most runs
            never came there.
        success: share of runs that came there.
        cpu_ms: processor time per evaluation; NaN where another process searched.
        searcher: what searched, with its version.
        gains: evaluations, or "P" -> how much larger that share, or P, is than without what other
            spaces know, mean of the pairs of one seed, and its standard error; empty where no
            other space was asked.
    """

    space: str
    digest: str
    size: int
    near_optimum: float
    strategy: str
    seeds: int
    score: float
    spread: float
    share_at: dict[int, float]
    evaluations_to_good: float
    success: float
    cpu_ms: float
    searcher: str
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is no number is None."""
        data = {**vars(self), "share_at": {str(k): v for k, v in self.share_at.items()}}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scored:
        """What `to_json` made.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        unknown = {"score": math.nan, "spread": math.nan, "cpu_ms": math.nan}
        unknown["evaluations_to_good"] = math.inf
        made = {
            "gains": {},
            **{name: data[name] for name in cls.__dataclass_fields__ if name in data},
        }
        for name, member in cls.__dataclass_fields__.items():
            value = made[name]
            if name == "gains":
                made[name] = {str(mark): (float(g), float(e)) for mark, (g, e) in value.items()}
            elif name == "share_at":
                made[name] = {int(mark): float(share) for mark, share in value.items()}
            elif member.type == "float":
                made[name] = unknown[name] if value is None and name in unknown else float(value)
            elif type(value).__name__ != member.type:
                raise TypeError(f"{name} is {value!r}")
        return cls(**made)


def summarise(
    space: RecordedSpace,
    strategy: str,
    runs: Sequence[FinishedRun],
    marks: Sequence[int] = MARKS,
    without: Sequence[FinishedRun] = (),
) -> Scored:
    """What a strategy's runs come to.

    Args:
        space: what was searched.
        strategy: its name.
        runs: all as long as the last mark or the space.
        marks: numbers of evaluations to report.
        without: the same seeds without what other spaces know; none where `runs` had nothing of it.
    """
    curves = [run.curve for run in runs]
    gained = score(space, curves, max(marks))
    needed, shares = [], {}
    for curve in curves:
        good = np.flatnonzero(curve <= space.optimum_ms / GOOD)
        needed.append(float(good[0] + 1) if good.size else math.inf)
    for mark in marks:
        at = min(mark, len(curves[0])) - 1
        shares[mark] = float(np.mean([space.optimum_ms / curve[at] for curve in curves]))
    return Scored(
        space=space.name,
        digest=space.digest,
        size=len(space.configs),
        near_optimum=space.near_optimum,
        strategy=strategy,
        seeds=len(curves),
        score=float(gained.mean()),
        spread=float(gained.std(ddof=1)) if len(gained) > 1 else math.nan,
        share_at=shares,
        evaluations_to_good=float(np.median(needed)),
        success=float(np.mean(np.isfinite(needed))),
        cpu_ms=float(1e3 * np.mean([run.cpu_s / len(run.curve) for run in runs])),
        searcher=runs[0].searcher,
        gains=_gains(space, curves, [run.curve for run in without], marks) if without else {},
    )


def _gains(
    space: RecordedSpace, runs: Sequence[Floats], without: Sequence[Floats], marks: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """See `Scored.gains`. Pairs, as seeds differ by far more than what other spaces bring."""
    sides = [np.array(curves) for curves in (runs, without)]
    told = {}
    for mark in marks:
        at = min(mark, sides[0].shape[1]) - 1
        told[str(mark)] = [space.optimum_ms / side[:, at] for side in sides]
    told["P"] = [score(space, curves, max(marks)) for curves in (runs, without)]
    gains = {}
    for name, (own, other) in told.items():
        pairs = own - other
        error = pairs.std(ddof=1) / math.sqrt(len(pairs)) if len(pairs) > 1 else 0.0
        if np.all(np.isfinite(pairs)):
            gains[name] = float(pairs.mean()), float(error)
    return gains
