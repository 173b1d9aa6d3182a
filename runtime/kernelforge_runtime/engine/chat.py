"""A conversation with a model: turns in the form it was trained on, and a state that carries them.

Between turns the state ends with the text that opens the user's next turn, whatever the answer
ended with: each turn only runs what is new.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kernelforge_runtime.engine.engine import Engine
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.errors import RequestError
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampling, Tokenizer


@dataclass(frozen=True)
class ChatFormat:
    """How a turn looks.

    Attributes:
        opening: before the first turn; between turns a blank line stands before it, and that is
            where an answer ends.
        turn: what follows, up to the answer; `{}` is what the user said.
        blank_lines: whether what the user says may hold blank lines.
    """

    opening: str
    turn: str
    blank_lines: bool = False

    @property
    def stop(self) -> str:
        """Where an answer ends; empty where only its length ends it."""
        return f"\n\n{self.opening}" if self.opening else ""


FORMATS: Final = {
    "world": ChatFormat("User:", " {}\n\nAssistant:"),
    "think": ChatFormat("User:", " {} think\n\nAssistant: <think"),
    "raven": ChatFormat("Bob:", " {}\n\nAlice:"),
    "plain": ChatFormat("", "{}", blank_lines=True),
}
"""Models of the World vocabulary; those of them that reason first; Raven, with the Pile's
vocabulary; and models that were not trained to talk, which go on with the text."""


def usual_format(tokenizer: Tokenizer | None) -> str:
    """The name of the format that models with this vocabulary are trained on."""
    if tokenizer is None or tokenizer.name == "bytes":
        return "plain"
    return "world" if tokenizer.name == "world" or tokenizer.vocab_size > 60_000 else "raven"


class Conversation:
    """Turns, one after the other.

    Attributes:
        engine: whose slot each answer takes.
        format: of the turns.
        turns: what was said and answered since the start, or since a state was loaded.
        state: after the last turn.
        request: the last answer's, None before.
    """

    def __init__(
        self,
        engine: Engine,
        format: ChatFormat,  # noqa: A002 - the word for it
        sampling: Sampling | None = None,
        max_tokens: int = 1000,
        stop: Sequence[str] = (),
    ) -> None:
        """A conversation before its first turn.

        Args:
            engine: with a tokenizer.
            format: of the turns.
            sampling: as for Engine.submit; a seed is counted up with every answer.
            max_tokens: of an answer.
            stop: further strings that end an answer.
        """
        self.engine, self.format = engine, format
        self.sampling, self.max_tokens = sampling, max_tokens
        self._stop = tuple(s for s in (format.stop, *stop) if s)
        self.request: Request | None = None
        self._answers = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.turns: list[tuple[str, str]] = []
        self._first = self.engine.model.new_state()
        self.state: State = self._first
        self._before: State | None = None

    def say(self, text: str) -> Iterator[str]:
        """The answer, piece by piece. Closing the iterator ends the answer where it is.

        A step that gives no text gives an empty piece, so that a long prompt can be broken off too.

        Raises:
            RequestError: nothing was said, or it cannot be expressed in the vocabulary.
        """
        yield from self._answered(text, self.state)

    def regenerate(self) -> Iterator[str]:
        """Another answer to the last thing said; where it fails, the one there is stays.

        Raises:
            RequestError: nothing was said since the start or since a state was loaded.
        """
        if self._before is None or not self.turns:
            raise RequestError("there is no answer to give anew: say something first")
        return self._answered(self.turns[-1][0], self._before, anew=True)

    def _answered(self, text: str, start: State, anew: bool = False) -> Iterator[str]:
        """The answer to what was said in this state, in place of the last one where `anew`."""
        text = text.strip()
        if not self.format.blank_lines:
            text = without_blank_lines(text)
        if not text:
            raise RequestError("nothing was said: write something first")
        prompt = self.format.turn.format(text)
        if start.position == 0:
            prompt = self.format.opening + prompt
        sampling = self.sampling
        if sampling is not None and sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self._answers)
        # Without a state a request may go on from a cached one.
        fresh = self.engine.prefix_cache is not None and start is self._first
        request = self.engine.submit(
            prompt,
            self.max_tokens,
            sampling,
            stop=self._stop,
            state=None if fresh else start,
            keep_state=True,
        )
        self.request = request
        self._answers += 1
        answered = ""
        try:
            for piece in _pieces(self.engine, request):
                if self.format.opening and not answered:  # the blank behind "Assistant:"
                    piece = piece.lstrip()
                answered += piece
                yield piece
        finally:
            self.engine.cancel(request)
            if request.reason != "error":  # a damaged state is no place to go on from
                state = self._settled(prompt, request, start)
                self.turns[len(self.turns) - anew :] = [(text, answered)]
                self._before, self.state = start, state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state after the last turn."""
        self.state.save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a saved conversation, whose words are not known any more."""
        state = self.engine.load(path)
        self.reset()
        self.state = state

    def _settled(self, prompt: str, request: Request, start: State) -> State:
        """The state after the turn and its blank line and opening, with nothing behind them."""
        engine, stop = self.engine, self.format.stop
        assert engine.tokenizer is not None
        said = engine.tokenizer.decode(request.tokens).decode("utf-8", "replace")
        if said.endswith(stop) or not stop:
            return engine.state_of(request)
        if request.reason == "stop" and stop in said:  # the last token says more than that
            state = start.clone()
            rest = prompt + said[: said.index(stop)] + stop
        else:
            state, rest = engine.state_of(request), stop
        engine.model.forward(engine.tokenizer.encode(rest), state)
        engine.model.release(state)
        return state


def without_blank_lines(text: str) -> str:
    """Text in which a line's end stands for several and the white space around them.

    In one pass, be that white space as long as it may.
    """
    return re.sub(r"\s+", lambda run: "\n" if run[0].count("\n") > 1 else run[0], text)


def _pieces(engine: Engine, request: Request) -> Iterator[str]:
    """Text of one request as it comes, step by step; others of the engine go on with it."""
    while request.reason is None:
        yield "".join(event.text for event in engine.step() if event.request is request)
    if request.reason == "error":
        raise RequestError(f"the answer was broken off: {request.error}")
