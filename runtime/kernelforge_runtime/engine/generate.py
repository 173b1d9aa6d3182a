"""Generates text piece by piece from one prompt; a device works while a piece is made and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernelforge_runtime.engine.admission import check_terms
from kernelforge_runtime.errors import TokenizerError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.submitted import Flight
from kernelforge_runtime.models.tokens import check_tokens
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampler, Sampling, StreamDecoder, Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that became complete with it."""

    token: int
    text: str


@dataclass
class Statistics:
    """What a generation took; filled in while it runs.

    Attributes:
        prompt_tokens: tokens of the prompt.
        tokens: tokens generated.
        prefill_s: seconds until the first token was chosen.
        decode_s: seconds for all further ones.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tok_per_s(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tok_per_s(self) -> float:
        """Generated tokens per second after the first."""
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s else 0.0


def generate(
    model: Model | Reference,
    prompt: str | Sequence[int],
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    tokenizer: Tokenizer | None = None,
    state: State | None = None,
    statistics: Statistics | None = None,
) -> Iterator[Piece]:
    """Continues a prompt; yields one piece per token as soon as it is known.

    Args:
        model: from load_model or load_reference.
        prompt: text, or token ids.
        max_tokens: tokens at most; the vocabulary's end token, if it has one, ends the text sooner.
        sampling: how tokens are chosen; the official defaults where None.
        tokenizer: picked by the vocabulary's size where None; where none fits, the prompt is ids
            and pieces have no text.
        state: to start from; updated in place.
        statistics: filled in while the generator runs.

    Raises:
        ModelError: the prompt is empty, a token is not in the vocabulary, or there is no such
            number of tokens or choice of them.
        TokenizerError: the prompt is text, and no tokenizer fits the vocabulary.
    """
    ids, tokenizer = _ids(model, prompt, tokenizer)
    end = tokenizer.end_token if tokenizer is not None else None
    terms = check_terms(max_tokens, sampling, (), (), model.config.vocab, None)
    max_tokens, sampling = terms.max_tokens, terms.sampling
    counted = statistics if statistics is not None else Statistics()
    sampler = Sampler(sampling, tokenizer)
    stream = StreamDecoder(tokenizer) if tokenizer is not None else None
    counted.prompt_tokens = len(ids)
    started = time.perf_counter()
    unseen = state is None  # nobody finds a state that is a token ahead of the text
    logits, state = model.forward(ids, state)
    token = sampler.choose(logits)
    counted.prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for count in range(1, max_tokens + 1):
        if token == end:
            if stream is not None and (tail := stream.flush()):
                yield Piece(token, tail)
            break
        counted.tokens, counted.decode_s = count, time.perf_counter() - started
        ahead = None
        if unseen and count < max_tokens and isinstance(model, Model):
            wanted: Output = "greedy" if sampling.is_greedy else "last"
            ahead = model, model.launch([[token]], [state], wanted, 1)
        text = stream.push(token) if stream is not None else ""
        if count == max_tokens:
            yield Piece(token, text + (stream.flush() if stream is not None else ""))
            break
        yield Piece(token, text)
        if ahead is not None:
            token = _landed(*ahead, sampler)
        elif sampling.is_greedy:
            token = model.greedy(token, state)
        else:
            logits, state = model.forward([token], state)
            token = sampler.choose(logits)


def _ids(
    model: Model | Reference, prompt: str | Sequence[int], tokenizer: Tokenizer | None
) -> tuple[list[int], Tokenizer | None]:
    """(the prompt's ids, what makes text of tokens; None where the prompt needs none)."""
    try:
        tokenizer = tokenizer or load_tokenizer("auto", model.config.vocab)
    except TokenizerError:
        if isinstance(prompt, str):
            raise
        return check_tokens(prompt, model.config.vocab).tolist(), None
    if isinstance(prompt, str):
        return tokenizer.encode(prompt), tokenizer
    return check_tokens(prompt, model.config.vocab).tolist(), tokenizer


def _landed(model: Model, flight: Flight, sampler: Sampler) -> int:
    """The token that a step gives which was submitted before."""
    tokens = model.tokens_of(flight)
    return int(tokens[0]) if tokens is not None else sampler.choose(model.logits_of(flight)[0])
