"""How many tokens of which slot go into a step, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.models.inputs import Rows, taken
from kernelforge_runtime.models.step_size import share
from kernelforge_runtime.state import State


def pack(left: Sequence[int], chunk: int) -> list[int]:
    """Tokens of each slot, at least one each.

    Who has one token left, as in decode, runs in every step; the rest of the step is shared among
    the prompts, so that neither a long prompt nor many short ones hold anybody up.

    Args:
        left: tokens that each slot has yet to run, 1 or more.
        chunk: tokens of the step, at least as many as there are slots.
    """
    prompts = {i: n for i, n in enumerate(left) if n > 1}
    parts = share(chunk - (len(left) - len(prompts)), prompts)
    return [parts.get(i, 1) for i in range(len(left))]


@dataclass(frozen=True)
class Packed:
    """A step, before it is submitted.

    Attributes:
        requests: that have a part in it; those that a token is chosen for come first.
        ready: these.
        pieces: ids of each request.
        states: of each.
        rows: float32 [n, C], the vectors among the pieces; None where there are none.
    """

    requests: list[Request]
    ready: list[Request]
    pieces: list[NDArray[np.uint32]]
    states: list[State]
    rows: Rows = None

    @classmethod
    def of(cls, parts: Sequence[tuple[Request, int]]) -> Packed:
        """The step of these requests, with so many ids of each; none is taken from them yet."""
        requests = [request for request, _ in parts]
        ready = [request for request, count in parts if count == len(request.pending)]
        pieces = [request.pending[:count] for request, count in parts]
        rows = [
            first
            for request, piece in zip(requests, pieces, strict=True)
            if request.rows is not None and (first := taken(piece, request.rows)[0]) is not None
        ]
        joined = np.concatenate(rows) if rows else None
        return cls(requests, ready, pieces, states_of(requests), joined)

    def consume(self) -> None:
        """What was submitted is pending no more."""
        for request, piece in zip(self.requests, self.pieces, strict=True):
            request.take(len(piece))


def states_of(requests: Sequence[Request]) -> list[State]:
    """Their states."""
    return [request.state for request in requests if request.state is not None]
