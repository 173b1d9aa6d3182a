"""What a run is given: tokens, and vectors among them; both are checked before they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F16, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.ops.given_rows import GIVEN
from kernelforge_runtime.state import State

Rows = NDArray[np.float32] | None
"""Vectors [n, C]; None where there are none."""


@dataclass(frozen=True)
class Inputs:
    """A sequence to run.

    Attributes:
        ids: uint32 [T]; GIVEN where a vector stands.
        rows: float32 [n, C], the vectors in their order: each stands for a row of the embedding.
            None where there are none.
    """

    ids: NDArray[np.uint32]
    rows: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def pieces(self, size: int) -> Iterator[Inputs]:
        """All of it, so many tokens and vectors at most at a time."""
        rows = self.rows
        for start in range(0, len(self), size):
            ids = self.ids[start : start + size]
            first, rows = taken(ids, rows)
            yield Inputs(ids, first)


def taken(ids: NDArray[np.uint32], rows: Rows) -> tuple[Rows, Rows]:
    """(the vectors that stand among these ids, those behind them)."""
    if rows is None:
        return None, None
    count = int(np.count_nonzero(ids == GIVEN))
    return rows[:count] if count else None, rows[count:] if count < len(rows) else None


def check_inputs(
    tokens: Sequence[int], vectors: Any, config: ModelConfig, activations: DType
) -> Inputs:
    """Tokens, or vectors, as a run takes them.

    Raises:
        ModelError: both or none are given, or they cannot be run.
    """
    if vectors is None:
        return Inputs(check_tokens(tokens, config.vocab))
    if len(tokens):
        raise ModelError("tokens and vectors were given: give one of them, run one after the other")
    try:
        given = np.asarray(vectors)
    except (TypeError, ValueError) as error:
        raise ModelError(f"vectors are no array of numbers: {error}") from None
    if given.dtype.kind not in "fiu" or given.ndim != 2 or given.shape[1] != config.width:
        raise ModelError(
            f"vectors are {given.dtype} {list(given.shape)}: this model takes numbers "
            f"[T, {config.width}], in place of rows of its embedding"
        )
    if len(given) == 0:
        raise ModelError("no vectors to run: give at least one")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(given, np.float32)
        kept = rows.astype(activations.np) if activations == F16 else rows
    bad = ~np.isfinite(kept).all(1)
    if bad.any():
        where = int(np.argmax(bad))
        raise ModelError(
            f"vector {where} of {len(rows)} holds a value that is not finite in {activations}: "
            "nothing was run"
        )
    return Inputs(np.full(len(rows), GIVEN, np.uint32), rows)


def state_or_new(state: State | None, fresh: Callable[[], State]) -> State:
    """The state that was given, or the model's first one where it is None.

    Raises:
        ModelError: it is something else.
    """
    if state is None:
        return fresh()
    if not isinstance(state, State):
        raise ModelError(
            f"a state is a State, found {type(state).__name__}: load_state reads it from a file"
        )
    return state


def check_batch(
    tokens: Sequence[Sequence[int]],
    states: Sequence[State | None] | None,
    config: ModelConfig,
    model: str,
    fresh: Callable[[], State],
) -> tuple[list[NDArray[np.uint32]], list[State]]:
    """Several sequences and their states, all of them checked before the first one runs.

    Args:
        tokens: ids of each sequence.
        states: one each; None starts anew, as None among them does.
        config: of the model that runs them.
        model: its hash.
        fresh: gives its first state.

    Raises:
        ModelError: one cannot be run, a state is another model's, or is given twice.
    """
    try:
        ids = [check_tokens(each, config.vocab) for each in tokens]
        given = [None] * len(ids) if states is None else [*states]
    except TypeError as error:
        raise ModelError(
            f"a batch is a list of lists of token ids, and a list of states: {error}"
        ) from None
    if len(given) != len(ids):
        raise ModelError(f"{len(ids)} sequences were given {len(given)} states")
    kept = [state_or_new(state, fresh) for state in given]
    if len({id(state) for state in kept}) != len(kept):
        raise ModelError("a state was given for two sequences: clone it")
    for state in kept:
        state.check(config.version, config.states, model)
    return ids, kept
