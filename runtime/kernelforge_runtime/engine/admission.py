"""What may be asked of an engine: every part of a request is checked before it is queued."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.engine.request import Terms
from kernelforge_runtime.errors import ModelError, TokenizerError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampling, Tokenizer
from kernelforge_runtime.text.draws import SEED_BITS

LONGEST_STOP = 1024
"""Characters of a stop string; every token's text is compared with each."""
MOST_STOPS = 64


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
        flags = () if isinstance(prompt, np.ndarray) else prompt
        if any(isinstance(token, (bool, np.bool_)) for token in flags):
            raise TypeError("true and false are no ids")
        ids = check_tokens(prompt, vocab)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the prompt is no list of token ids: {error}") from None
    if len(ids) > longest:
        raise ModelError(
            f"the prompt has {len(ids)} tokens, this engine takes {longest}: "
            "shorten it, or run its start first and go on from that state"
        )
    return ids


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
