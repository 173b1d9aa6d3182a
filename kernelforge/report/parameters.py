"""Which parameters of a family decide its speed, from every trial that a journal tells of.

Trials of all problems of a family and precision are taken together, each as its time over the best
time of its own problem: what matters for one size mostly does for its neighbours, and searches are
short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from kernelforge.errors import SpaceError
from kernelforge.measure.measurement import Measurement
from kernelforge.variant import Value, Variant

LEAST_TRIALS = 12
"""With fewer, what looks important is chance."""
MOST_TRIALS = 5000
"""Of more the newest are looked at: each costs half a millisecond, and adds next to nothing."""
SHOWN = 8


@dataclass(frozen=True)
class Trial:
    """One good trial: its problem, its parameters, and its time over the best of its problem."""

    problem: str
    params: dict[str, Value]
    times_best: float


@dataclass(frozen=True)
class HeatMap:
    """Two parameters against each other.

    Attributes:
        rows: values of the first, in order.
        columns: values of the second.
        cells: median times-of-best by [row][column]; NaN where nothing was tried.
        counts: trials behind each cell.
    """

    first: str
    second: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]


def good_trials(measurements: Sequence[Measurement]) -> list[Trial]:
    """Trials with a time, of the newest template and driver only; early stops among them."""
    newest = next((m for m in reversed(measurements) if m.template_sha256), None)
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        stale = newest is not None and (
            m.template_sha256 not in (newest.template_sha256, "") or m.driver != newest.driver
        )
        if m.ok and m.phase == "trial" and m.time_ns > 0 and not stale:
            found.setdefault(m.problem, []).append(m)
    trials = []
    for problem, group in found.items():
        best = min(m.time_ns for m in group)
        for m in group:
            try:
                params = dict(Variant.parse(m.variant).values)
            except SpaceError:
                continue
            trials.append(Trial(problem, params, m.time_ns / best))
    return trials


def importance(trials: Sequence[Trial]) -> tuple[tuple[str, float], ...]:
    """Share of each parameter in what tells the fast from the rest, largest first; they sum to 1.

    Empty where there are too few trials, or no Optuna. What is taken for good are the trials
    within the best tenth, Optuna's own default.
    Source: S. Watanabe, A. Bansal, F. Hutter, PED-ANOVA, 2023 (Optuna's evaluator of that name).
    """
    trials = trials[-MOST_TRIALS:]
    varied = _varied(trials)
    if len(trials) < LEAST_TRIALS or not varied:
        return ()
    try:
        import optuna
        from optuna.distributions import BaseDistribution, CategoricalDistribution
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    except ImportError:  # the extra `tune` is not installed
        return ()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(values) for name, values in varied.items()
    }
    study = optuna.create_study()
    for trial in trials:
        params = {name: _text(trial.params[name]) for name in varied}
        value = math.log(trial.times_best)
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=choices, value=value)
        )
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    known = [(name, share) for name, share in found.items() if math.isfinite(share)]
    return tuple(sorted(known, key=lambda pair: (-round(pair[1], 9), pair[0])))


def heat_map(trials: Sequence[Trial], shares: Sequence[tuple[str, float]]) -> HeatMap | None:
    """Of the two most important parameters; None where fewer than two matter."""
    if len(shares) < 2:
        return None
    first, second = shares[0][0], shares[1][0]
    varied = _varied(trials)
    rows, columns = varied[first], varied[second]
    times: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        place = _text(trial.params[first]), _text(trial.params[second])
        times.setdefault(place, []).append(trial.times_best)
    return HeatMap(
        first,
        second,
        rows,
        columns,
        tuple(
            tuple(median(times[r, c]) if (r, c) in times else math.nan for c in columns)
            for r in rows
        ),
        tuple(tuple(len(times.get((r, c), ())) for c in columns) for r in rows),
    )


def _varied(trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """Parameters that every trial names and that a problem had a choice of; values in order."""
    if not trials:
        return {}
    names = [n for n in trials[0].params if all(n in trial.params for trial in trials)]
    found = {}
    for name in names:
        values = {trial.params[name] for trial in trials}
        pairs = {(trial.problem, trial.params[name]) for trial in trials}
        if len(pairs) > len({trial.problem for trial in trials}):
            found[name] = tuple(_text(v) for v in sorted(values, key=_order))
    return found


def _order(value: Value) -> tuple[bool, float, str]:
    return (False, float(value), "") if isinstance(value, (int, float)) else (True, 0.0, value)


def _text(value: Value) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
