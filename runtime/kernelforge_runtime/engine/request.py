"""One request of an engine: what was asked, what came of it so far, and how its text ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.sampling import NO_TOKEN
from kernelforge_runtime.engine.prefix_cache import Trail
from kernelforge_runtime.engine.spelling import Spelling
from kernelforge_runtime.errors import ModelError, TokenizerError
from kernelforge_runtime.models.device_choice import MOST_PENALTIES, Choice
from kernelforge_runtime.models.inputs import Rows, taken
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampler, Sampling, StopStrings, StreamDecoder, Tokenizer

T = TypeVar("T")
_Start = tuple[State | None, NDArray[np.uint32], Rows, int]
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
        prompt: token ids, 0 where a vector stands.
        terms: what else was asked.
        tokens: chosen so far.
        reason: why it ended; None while it waits or runs.
        error: what went wrong, where the reason says so.
        state: the recurrent state; None while it waits, and after its end unless it was to be kept.
        pending: ids that the state has not been through yet, uint32: the rest of the prompt, or the
            last token; none where a step with it was submitted, or nothing follows. GIVEN where a
            vector stands.
        rows: these vectors, float32 [n, C]; None where there are none.
        from_start: whether its state began as the model's first one.
        first: logits [V] to choose its first token from, where nothing is pending from the start.
        parting: where the prompt parts from others that are known; 0 where that is no matter.
        spelling: of the prompt, for a prefix cache; None where none was asked.
        trail: where that cache has kept it last.
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
        self._texts: list[str] = []
        self.reason: Reason | None = None
        self.error = ""
        self.state: State | None = None
        self.pending = prompt
        self.rows: Rows = None
        self.first: NDArray[np.float32] | None = None
        self._closed: Literal["length", "end", "stop", ""] = ""
        self._failure = ""
        self._kept: NDArray[np.float32] | None = None
        self._shown = 0
        self._started: _Start = (None, prompt, None, 0)
        self.from_start = False
        self.parting = 0
        self.spelling: Spelling | None = None
        self.trail = Trail()
        self._end_token = tokenizer.end_token if tokenizer is not None else None
        self._stream = StreamDecoder(tokenizer) if tokenizer is not None else None
        self._stops = StopStrings(terms.stop)
        self.sampler = Sampler(terms.sampling, tokenizer)
        for token in tokens:  # of the request that this one goes on from
            self.sampler.accept(token)
            self.tokens.append(token)
            self._show(token)

    @property
    def text(self) -> str:
        """Of the tokens, as far as it is complete; joined only when somebody asks."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    @property
    def has_news(self) -> bool:
        """Whether a choice was made of which nothing was told yet."""
        unsaid = self._closed or self._failure or len(self.tokens) > self._shown
        return self.reason is None and bool(unsaid)

    def remember(self) -> None:
        """Keeps what it starts from, for `rewind`."""
        start = self.state.clone() if self.state is not None else None
        self._started = start, self.pending, self.rows, len(self.tokens)

    def rewind(self, fresh: State) -> None:
        """Back to what it started from, with all that it ran and said since to be run again."""
        start, pending, self.rows, said = self._started
        self.state = start.clone() if start is not None else fresh
        self.pending = np.concatenate([pending, np.array(self.tokens[said:], np.uint32)])
        self.parting = 0

    def take(self, count: int) -> None:
        """So many ids, and the vectors among them, are pending no more."""
        if self.rows is not None:
            self.rows = taken(self.pending[:count], self.rows)[1]
        self.pending = self.pending[count:]

    def choose(self, logits: NDArray[np.float32]) -> None:
        """Chooses the next token from logits [V]; those that are damaged end the request.

        As after `chosen` and `close`, the state may go on from here; `news` tells what came of it.
        """
        self._guarded(lambda: self._take(self.sampler.choose(logits), logits))

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

    def chosen(self, token: int) -> None:
        """Goes on with what a device chose."""
        if token == NO_TOKEN:
            self._failure = "the largest logit is not finite: the state is damaged"
        else:
            self._guarded(lambda: self._take(self._counted(token)))

    def close(self) -> None:
        """Nothing is to be chosen any more."""
        self._closed = "length"

    @property
    def must_see(self) -> bool:
        """Whether its next token must be known before it is run, lest it be in a kept state."""
        closers = self._end_token is not None or self.terms.stop_tokens
        return self.terms.keep_state and bool(closers)

    @property
    def is_over(self) -> bool:
        """Whether it ends, whatever the text of its last token is."""
        said = len(self.tokens)
        return bool(self._closed or self._failure) or 0 < said >= self.terms.max_tokens

    def news(self) -> Event:
        """What came of the last choice; its text is made here, while a device may be at work."""
        if not self._failure:
            found = self._guarded(self._told)
            if found is not None:
                return found
        return self.end("error", self._failure)

    def _counted(self, token: int) -> int:
        self.sampler.accept(token)
        return token

    def _guarded(self, doing: Callable[[], T]) -> T | None:
        """What goes wrong with one request's token, in a tokenizer for one, ends it alone."""
        try:
            return doing()
        except (ModelError, TokenizerError) as error:
            self._failure = str(error)
        except Exception as error:  # a tokenizer may be anybody's
            self._failure = f"{type(error).__name__}: {error}"
        return None

    def _take(self, token: int, logits: NDArray[np.float32] | None = None) -> None:
        """Goes on with a chosen token, which the sampler has counted."""
        self._kept = logits if self.terms.logits else None
        if token == self._end_token or token in self.terms.stop_tokens:
            self.pending = self.pending[:0]
            self._closed = "end" if token == self._end_token else "stop"
        else:
            self.pending = np.array([token], np.uint32)
            self.tokens.append(token)

    def _told(self) -> Event:
        kept, self._kept = self._kept, None
        if self._closed:
            return self.end(self._closed, logits=kept)
        token = self.tokens[-1]
        text = self._show(token)
        if self._stops.hit is not None:
            self.reason = "stop"
        elif len(self.tokens) >= self.terms.max_tokens:
            return self.end("length", token=token, text=text, logits=kept)
        return Event(self, token, text, self.reason, kept)

    def end(self, reason: Reason, error: str = "", text: str = "", **more: Any) -> Event:
        """Ends the request; what was held back of its text is shown."""
        rest = self._stops.push(self._flushed(reason))
        if self._stops.hit is None:
            rest += self._stops.flush()
        elif reason in ("length", "end"):  # what was left of the text held a stop string
            reason = "stop"
        self.reason, self.error = reason, error
        self._texts.append(rest)
        return Event(self, text=text + rest, reason=reason, **more)

    def _flushed(self, reason: Reason) -> str:
        if self._stream is None:
            return ""
        try:
            return self._stream.flush()
        except Exception:
            if reason != "error":
                raise
            return ""  # of a text that the tokenizer has failed on already

    def _show(self, token: int) -> str:
        self._shown += 1
        text = self._stops.push(self._stream.push(token)) if self._stream is not None else ""
        self._texts.append(text)
        return text
