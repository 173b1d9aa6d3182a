"""One request of an engine: what was asked, what came of it so far, and how its text ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.sampling import NO_TOKEN
from kernelforge_runtime.errors import ModelError, TokenizerError
from kernelforge_runtime.models.device_choice import MOST_PENALTIES, Choice
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampler, Sampling, StopStrings, StreamDecoder, Tokenizer
from kernelforge_runtime.text.draws import uniform

Reason = Literal["length", "end", "stop", "cancelled", "error"]
"""Why a request ended: `end` is the vocabulary's end token, `stop` one of the request's own."""


@dataclass(frozen=True)
class Terms:
    """What a request may ask for besides its prompt.

    Attributes:
        max_tokens: tokens at most; 0 only runs the prompt.
        sampling: how tokens are chosen, with a seed.
        stop: strings at which the text ends; they are not shown.
        stop_tokens: ids that end the text; they are not among its tokens.
        keep_state: whether the state outlives the request, on the host.
        logits: whether events carry the logits that their token was chosen from.
    """

    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    keep_state: bool = False
    logits: bool = False


@dataclass(frozen=True, eq=False)
class Event:
    """What became known of a request in a step.

    Attributes:
        request: whose.
        token: the token chosen; None where none was, as at an end token.
        text: what became complete with it.
        reason: why the request ended, None where it goes on.
        logits: float32 [V], where the request asked for them.
    """

    request: Request
    token: int | None = None
    text: str = ""
    reason: Reason | None = None
    logits: NDArray[np.float32] | None = None

    @property
    def id(self) -> int:
        """The request's number."""
        return self.request.id


class Request:
    """Made by `Engine.submit`; changed by the engine alone.

    Attributes:
        id: its number, from 1 up in the order of admission.
        prompt: token ids.
        terms: what else was asked.
        tokens: chosen so far.
        text: of the tokens, as far as it is complete.
        reason: why it ended; None while it waits or runs.
        error: what went wrong, where the reason says so.
        state: the recurrent state; None while it waits, and after its end unless it was to be kept.
        pending: ids that the state has not been through yet: the rest of the prompt, or the last
            token; uint32.
        from_start: whether its state began as the model's first one.
        parting: where the prompt parts from others that are known; 0 where that is no matter.
    """

    def __init__(
        self,
        number: int,
        prompt: NDArray[np.uint32],
        terms: Terms,
        tokenizer: Tokenizer | None,
        tokens: Sequence[int] = (),
    ) -> None:
        self.id, self.prompt, self.terms = number, prompt, terms
        self.tokens: list[int] = []
        self.text = ""
        self.reason: Reason | None = None
        self.error = ""
        self.state: State | None = None
        self.pending = prompt
        self._started: tuple[State | None, NDArray[np.uint32], int] = (None, prompt, 0)
        self.from_start = False
        self.parting = 0
        self._end_token = tokenizer.end_token if tokenizer is not None else None
        self._stream = StreamDecoder(tokenizer) if tokenizer is not None else None
        self._stops = StopStrings(terms.stop)
        self.sampler = Sampler(terms.sampling, tokenizer, self._draw)
        for token in tokens:  # of the request that this one goes on from
            self.sampler.accept(token)
            self._say(token)

    def remember(self) -> None:
        """Keeps what it starts from, for `rewind`."""
        start = self.state.clone() if self.state is not None else None
        self._started = start, self.pending, len(self.tokens)

    def rewind(self, fresh: State) -> None:
        """Back to what it started from, with all that it ran and said since to be run again."""
        start, pending, said = self._started
        self.state = start.clone() if start is not None else fresh
        self.pending = np.concatenate([pending, np.array(self.tokens[said:], np.uint32)])
        self.parting = 0

    def _draw(self) -> float:
        return uniform(self.terms.sampling.seed or 0, len(self.tokens))

    def choose(self, logits: NDArray[np.float32]) -> Event:
        """Chooses the next token from logits [V]; those that are damaged end the request."""
        try:
            token = self.sampler.choose(logits)
            return self.take(token, logits)
        except (ModelError, TokenizerError) as error:
            return self.end("error", str(error))

    def choice(self) -> Choice | None:
        """How a device is to choose the next token; None where the host has to."""
        sampling, penalties = self.terms.sampling, self.sampler.penalties
        if self.terms.logits or len(penalties) > MOST_PENALTIES:
            return None
        return Choice(
            sampling.takes_largest,
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.seed or 0,
            len(self.tokens),
            penalties,
        )

    def chosen(self, token: int) -> Event:
        """Goes on with what a device chose."""
        if token == NO_TOKEN:
            return self.end("error", "the largest logit is not finite: the state is damaged")
        self.sampler.accept(token)
        return self.take(token)

    def take(self, token: int, logits: NDArray[np.float32] | None = None) -> Event:
        """Goes on with a chosen token, which the sampler has counted."""
        kept = logits if self.terms.logits else None
        if token == self._end_token or token in self.terms.stop_tokens:
            self.pending = self.pending[:0]
            return self.end("end" if token == self._end_token else "stop", logits=kept)
        self.pending = np.array([token], np.uint32)
        text = self._say(token)
        if self._stops.hit is not None:
            self.reason = "stop"
        elif len(self.tokens) >= self.terms.max_tokens:
            return self.end("length", token=token, text=text, logits=kept)
        return Event(self, token, text, self.reason, kept)

    def end(self, reason: Reason, error: str = "", text: str = "", **more: Any) -> Event:
        """Ends the request; what was held back of its text is shown."""
        rest = self._stops.push(self._stream.flush()) if self._stream is not None else ""
        if self._stops.hit is None:
            rest += self._stops.flush()
        self.reason, self.error = reason, error
        self.text += rest
        return Event(self, text=text + rest, reason=reason, **more)

    def _say(self, token: int) -> str:
        self.tokens.append(token)
        text = self._stops.push(self._stream.push(token)) if self._stream is not None else ""
        self.text += text
        return text
