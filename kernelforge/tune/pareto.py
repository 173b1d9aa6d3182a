"""Which weight formats of a model are worth having: none is faster, smaller and truer at once.

The formats are the trials of one Optuna study with three directions; what its front holds is a
trade, and `recommend` states the rule by which one of them is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from kernelforge.errors import TuneError
from kernelforge_runtime.errors import KernelForgeError

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE)
"""Of speed, memory and error."""
MOST_WORSE = 1.0
"""Per cent of perplexity that a recommended format may lose."""
AS_FAST = 0.03
"""Share of the speed below which a difference is none."""


@dataclass(frozen=True)
class Point:
    """One format, measured.

    Attributes:
        weights: its name.
        tok_per_s: decoding, one sequence; median.
        spread: of that, median absolute deviation over the median.
        weight_bytes: on the device.
        perplexity: per token of the text.
        worse_percent: by how much the perplexity is above the reference's; below 0 it is better.
        divergence: mean Kullback-Leibler divergence of the next token's distribution from the
            reference's, in nats.
    """

    weights: str
    tok_per_s: float
    spread: float
    weight_bytes: int
    perplexity: float
    worse_percent: float
    divergence: float

    @property
    def values(self) -> tuple[float, float, float]:
        """What is compared, by `DIRECTIONS`: the divergence, as perplexity may fall by luck."""
        return self.tok_per_s, float(self.weight_bytes), self.divergence


@dataclass(frozen=True)
class Front:
    """What came of it.

    Attributes:
        points: every format that could be measured, in the order asked.
        best: names of those that none of the others beats in all three.
        recommended: one of these; see `recommend`.
        failed: name -> why, of the others.
    """

    points: tuple[Point, ...]
    best: tuple[str, ...]
    recommended: str
    failed: dict[str, str]


def find_front(names: Sequence[str], measure: Callable[[str], Point], most_worse: float) -> Front:
    """Measures each format once.

    Args:
        names: of the formats, each once.
        measure: makes a point; errors of the project's kind are kept as the format's.
        most_worse: for `recommend`.

    Raises:
        TuneError: none could be measured.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Nothing is drawn: every format is queued.
    study = optuna.create_study(directions=DIRECTIONS, sampler=RandomSampler(0))
    points: dict[str, Point] = {}
    failed: dict[str, str] = {}
    for name in names:
        study.enqueue_trial({"weights": name})
        trial = study.ask()
        assert trial.suggest_categorical("weights", [*names]) == name
        try:
            point = measure(name)
            if not all(math.isfinite(value) for value in (*point.values, point.perplexity)):
                raise TuneError(f"{name}: speed or error is no finite number")
        except KernelForgeError as error:
            failed[name] = " ".join(str(error).split())
            study.tell(trial, state=TrialState.FAIL)
            continue
        points[name] = point
        study.tell(trial, point.values)
    if not points:
        raise TuneError(f"--objective pareto: no format could be measured: {next(iter(failed))}: "
                        f"{failed[next(iter(failed))]}")  # fmt: skip
    front = {trial.params["weights"] for trial in study.best_trials}
    best = [name for name in points if name in front]
    chosen = recommend([points[name] for name in best], most_worse)
    return Front(tuple(points.values()), tuple(best), chosen, failed)


def recommend(front: Sequence[Point], most_worse: float = MOST_WORSE) -> str:
    """The fastest whose perplexity is little worse; of those about as fast, the smallest.

    Where all are worse than that, the one with the least divergence.

    Args:
        front: at least one point.
        most_worse: per cent of perplexity, against the reference.
    """
    good = [point for point in front if point.worse_percent <= most_worse]
    if not good:
        return min(front, key=lambda point: (point.divergence, point.weight_bytes)).weights
    fastest = max(point.tok_per_s for point in good)
    quick = [point for point in good if point.tok_per_s >= (1 - AS_FAST) * fastest]
    return min(quick, key=lambda point: (point.weight_bytes, -point.tok_per_s)).weights


def rule(most_worse: float) -> str:
    """The rule of `recommend`, in words."""
    return (
        f"the fastest of these whose perplexity is at most {most_worse:g} % above the reference's; "
        f"of those within {100 * AS_FAST:g} % of its speed the smallest"
    )


def to_json(front: Front) -> list[dict[str, Any]]:
    """Plain data of every point."""
    return [
        {
            **vars(point),
            "pareto": point.weights in front.best,
            "recommended": point.weights == front.recommended,
        }
        for point in front.points
    ]
