"""Times what serving takes: several sequences at once, and tokens far into a text. Says nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernelforge.measure import statistics
from kernelforge_runtime.models import Model
from kernelforge_runtime.state import State

EARLY = 10
"""The token that a late one is compared with."""
WINDOW = 8
"""Tokens of one sample of either."""
_SEED = 2
_WARM = 2


@dataclass(frozen=True)
class Batch:
    """Decoding of so many sequences at once.

    Attributes:
        sequences: how many.
        tok_per_s: of all together, one value per repetition.
        dispatches: of a step.
    """

    sequences: int
    tok_per_s: tuple[float, ...]
    dispatches: int

    @property
    def median(self) -> float:
        """Tokens per second of all together."""
        return statistics.median(self.tok_per_s)


@dataclass(frozen=True)
class LongRun:
    """Decoding early and late in a text, in turns.

    Attributes:
        late: the token.
        early_tok_per_s: at token 10, one value per repetition.
        late_tok_per_s: as many.
        early_bytes: of the state at token 10.
        late_bytes: of the state at the late token.
    """

    late: int
    early_tok_per_s: tuple[float, ...]
    late_tok_per_s: tuple[float, ...]
    early_bytes: int
    late_bytes: int

    @property
    def ratio(self) -> statistics.Interval:
        """How many times as fast the late tokens are."""
        return statistics.paired_ratio(self.late_tok_per_s, self.early_tok_per_s)


def time_batches(
    model: Model, batches: Sequence[int], tokens: int, repetitions: int
) -> list[Batch]:
    """Decodes with each number of sequences, in turns; the host takes the largest logits.

    Args:
        model: with as many slots as the largest batch.
        batches: numbers of sequences.
        tokens: steps of a repetition.
        repetitions: of each.
    """
    states = [model.new_state() for _ in range(max(batches))]
    speeds: dict[int, list[float]] = {count: [] for count in batches}
    for count in batches:
        _decode(model, states[:count], _WARM)
    for _ in range(repetitions):
        for count in batches:
            started = time.perf_counter()
            _decode(model, states[:count], tokens)
            speeds[count].append(count * tokens / (time.perf_counter() - started))
    return [
        Batch(count, tuple(found), len(model.calls(count, "last", count)))
        for count, found in speeds.items()
    ]


def time_long_run(model: Model, late: int, repetitions: int) -> LongRun:
    """Brings one sequence to token 10 and one to a late token, then decodes with each in turns.

    Args:
        model: with two slots, so that neither state moves meanwhile.
        late: a token from 11 on.
        repetitions: samples of either, of eight tokens.
    """
    tokens = np.random.default_rng(_SEED).integers(0, model.config.vocab, late).tolist()
    places = {at: model.new_state() for at in (EARLY, late)}
    for at, state in places.items():
        model.forward(tokens[:at], state)
    speeds: Mapping[int, list[float]] = {at: [] for at in places}
    for repetition in range(repetitions + 1):
        for at, state in places.items():
            token = tokens[0]
            started = time.perf_counter()
            for _ in range(WINDOW):
                token = model.greedy(token, state)
            if repetition:  # the first one warms up
                speeds[at].append(WINDOW / (time.perf_counter() - started))
    sizes = {at: sum(a.nbytes for a in state.arrays.values()) for at, state in places.items()}
    return LongRun(late, tuple(speeds[EARLY]), tuple(speeds[late]), sizes[EARLY], sizes[late])


def _decode(model: Model, states: Sequence[State], steps: int) -> None:
    pieces = [np.array([1 + i % (model.config.vocab - 1)], np.uint32) for i in range(len(states))]
    for _ in range(steps):
        logits = model.advance(pieces, states, len(states))
        pieces = list(logits.argmax(axis=1).astype(np.uint32)[:, None])
