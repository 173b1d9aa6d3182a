"""How an engine uses a prefix cache: where requests start, where their steps end, what is kept.

Only requests that began from the model's own first state take part; `Request.from_start` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.state import State

ENDED = ("length", "end", "stop")
"""Reasons after which a state is whole."""


def begin(cache: PrefixCache | None, request: Request) -> State | None:
    """The state that a request without one goes on from; None where it starts anew."""
    request.from_start = True
    if cache is None:
        return None
    spelling = request.spelling = cache.spell(request.pending, request.rows)
    state = cache.longest(spelling.tokens, spelling.proof)
    done = state.position if state is not None else 0
    request.take(done)
    parting = cache.parting(spelling.tokens)
    request.parting = parting if parting > done else 0
    return state


def piece(cache: PrefixCache | None, request: Request) -> int:
    """Tokens that a request may run before its state is wanted; all it has left at most."""
    left = len(request.pending)
    if cache is None or not request.from_start or left <= 1 or request.state is None:
        return left
    position = request.state.position
    until = cache.every - position % cache.every
    if position < request.parting:
        until = min(until, request.parting - position)
    return min(left, until)


def keep(cache: PrefixCache | None, requests: Sequence[Request], states: Sequence[State]) -> None:
    """Keeps what is worth it of the states that a step left.

    Args:
        cache: where it is kept.
        requests: of the step, after their tokens were chosen.
        states: of these requests.
    """
    if cache is None:
        return
    for request, state in zip(requests, states, strict=True):
        spelling = request.spelling
        if spelling is None or not request.from_start or request.reason == "error":
            continue
        at, prompt = state.position, len(request.prompt)
        inside = at < prompt and (at % cache.every == 0 or at == request.parting)
        if inside or at == prompt or request.reason in ENDED:
            answer = np.array(request.tokens[: max(at - prompt, 0)], np.uint32)
            tokens = spelling.tokens[:at]
            if len(answer):
                tokens = np.concatenate([tokens, answer])
            if len(tokens) != at:  # somebody has moved the state on
                continue
            if cache.keep(tokens, state, spelling.proof(at), request.trail) and at > prompt:
                cache.forget(spelling.tokens)
