"""What a run is given: tokens, or vectors in their place; both are checked before they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import F16, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models.base import ModelConfig
from kernelforge_runtime.models.tokens import check_tokens


@dataclass(frozen=True)
class Inputs:
    """A sequence to run.

    Attributes:
        ids: uint32 [T]; zeros where there are vectors.
        rows: float32 [T, C]: what stands for the embedding's rows; None where there are tokens.
    """

    ids: NDArray[np.uint32]
    rows: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def piece(self, start: int, count: int) -> Inputs:
        """Some of it."""
        rows = self.rows[start : start + count] if self.rows is not None else None
        return Inputs(self.ids[start : start + count], rows)


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
    return Inputs(np.zeros(len(rows), np.uint32), rows)
