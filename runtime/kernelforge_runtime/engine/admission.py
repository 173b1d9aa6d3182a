"""What may be asked of an engine: every part of a request is checked before it is queued."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.engine.request import Request, Terms
from kernelforge_runtime.errors import ModelError, RequestError, TokenizerError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampling, Tokenizer
from kernelforge_runtime.text.draws import SEED_BITS
from kernelforge_runtime.text.tokenizer import utf8

LONGEST_STOP = 1024
"""Characters of a stop string; every token's text is compared with each."""
MOST_STOPS = 64


def check_whole(name: str, value: Any) -> None:
    """Raises RequestError unless a setting of an engine is None or a whole number."""
    if value is not None and (not isinstance(value, (int, np.integer)) or isinstance(value, bool)):
        raise RequestError(f"{name} is {_short(value)}, it must be a whole number")


def check_prompt(
    prompt: Any, vocab: int, tokenizer: Tokenizer | None, why_none: str, longest: int
) -> NDArray[np.uint32]:
    """A prompt's token ids.

    Raises:
        ModelError: it is none, holds an id that is not there, or is too long.
        TokenizerError: it is text that cannot be expressed.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise TokenizerError(why_none)
        prompt = tokenizer.encode(prompt)
    try:
        check_length(len(prompt), longest)  # before anything looks at each of them
        if not isinstance(prompt, np.ndarray) and {bool, np.bool_} & set(map(type, prompt)):
            raise TypeError("true and false are no ids")
        ids = check_tokens(prompt, vocab)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the prompt is no list of token ids: {error}") from None
    return ids


def check_length(tokens: int, longest: int) -> None:
    """Raises ModelError where a prompt is too long."""
    if tokens > longest:
        raise ModelError(
            f"the prompt has {tokens} tokens, this engine takes {longest}: "
            "shorten it, or run its start first and go on from that state"
        )


def check_fork(
    request: Request, max_tokens: int, model: Model | Reference, follows: bool
) -> State | None:
    """A copy of the state that a request's fork starts from; None where it waits without one.

    Args:
        request: that is forked.
        max_tokens: of the fork.
        model: that runs it.
        follows: whether there are logits to go on from where nothing is pending.

    Raises:
        ModelError: it has none any more, nothing is left to go on with, or it is another model's.
    """
    name = f"request {request.id}"
    if request.state is None and request.reason is not None:
        raise ModelError(f"{name} has ended without its state: ask to keep it")
    if request.reason == "length" and not request.terms.max_tokens:
        raise ModelError(
            f"{name} has run its prompt alone, with max_tokens 0, and what follows was not "
            "computed: submit what comes next from its state"
        )
    if request.reason == "stop" or not (len(request.pending) or follows):
        raise ModelError(f"{name} has ended its text: nothing follows")
    said = len(request.tokens)
    if said and said >= max_tokens:
        raise ModelError(
            f"{name} has said {said} tokens already: max_tokens is {max_tokens}, ask for more"
        )
    check_tokens(request.prompt, model.config.vocab)  # it may be another engine's
    return check_state(request.state, model) if request.state is not None else None


def check_terms(
    max_tokens: Any,
    sampling: Any,
    stop: Any,
    stop_tokens: Any,
    vocab: int,
    why_no_text: str | None,
) -> Terms:
    """The terms of a request, with a seed.

    Args:
        max_tokens: see Terms, as the next three.
        sampling: the official defaults where None.
        stop: strings.
        stop_tokens: ids.
        vocab: ids there are.
        why_no_text: why there is no tokenizer; None where there is one.

    Raises:
        ModelError: something is not possible.
        TokenizerError: it needs text, and there is none.
    """
    whole = isinstance(max_tokens, (int, np.integer)) and not isinstance(max_tokens, bool)
    if not whole or max_tokens < 0:
        raise ModelError(f"max_tokens is {max_tokens!r}, it must be a whole number from 0 up")
    strings = _strings(stop)
    if strings and why_no_text is not None:
        raise TokenizerError(f"stop strings need text: {why_no_text}")
    try:
        if len(stop_tokens):
            check_tokens(stop_tokens, vocab)
    except (TypeError, ValueError) as error:
        raise ModelError(f"stop_tokens are no list of token ids: {error}") from None
    sampling = sampling if sampling is not None else Sampling()
    if not isinstance(sampling, Sampling):
        raise ModelError(f"sampling is {sampling!r}, it must be a Sampling")
    if sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbits(SEED_BITS))
    return Terms(max_tokens, sampling, strings, frozenset(int(t) for t in stop_tokens))


def _strings(stop: Any) -> tuple[str, ...]:
    listed = isinstance(stop, Sequence) and not isinstance(stop, str)
    if not listed or not all(isinstance(s, str) and s for s in stop):
        raise ModelError(f"stop is {_short(stop)}, it must be a list of strings, none empty")
    if len(stop) > MOST_STOPS or any(len(s) > LONGEST_STOP for s in stop):
        longest = max(map(len, stop))
        raise ModelError(
            f"stop has {len(stop)} strings of up to {longest} characters: at most {MOST_STOPS} "
            f"of {LONGEST_STOP} are watched for"
        )
    for string in stop:
        utf8(string)  # what no text can hold would be watched for in vain
    return tuple(stop)


def check_state(state: Any, model: Model | Reference) -> State:
    """A copy of a state that a request may start from.

    Raises:
        ModelError: it is no state of this model, or holds values that are not finite.
    """
    if not isinstance(state, State):
        raise ModelError(f"state is {_short(state)}, it must be a State")
    position = state.position
    whole = isinstance(position, (int, np.integer)) and not isinstance(position, bool)
    if not whole or not 0 <= position < 1 << 32:
        raise ModelError(f"the state's position is {position!r}: it is no state of this model")
    specs = model.config.states
    arrays = state.arrays
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ModelError("the state holds something that is no array")
    state.check(model.config.version, specs, model.hash)
    for name, array in arrays.items():
        kinds = "u" if specs[name].dtype.np.kind == "u" else "f"
        if array.dtype.kind not in kinds:
            raise ModelError(f"the state's {name} is {array.dtype}, not {specs[name].dtype.np}")
        if kinds == "f" and not np.isfinite(array).all():
            raise ModelError(f"the state's {name} holds NaN or infinity: it is damaged")
    return state.clone()


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."
