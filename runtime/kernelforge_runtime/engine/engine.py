"""Serves many requests with one model: whoever has something to run shares the next step.

Each request has a slot while it runs; requests wait in the order in which they came. A step takes
one token of everybody who decodes and fills up with prompts. What a request gets depends on its
own prompt, terms and seed, not on who else is served (but for rounding: another number of tokens
may take another kernel, which sums in another order).

Synchronous: whoever calls `step` or `run` works. Other threads may submit, fork, cancel and save
meanwhile, and wait for the step to end. One model, and what else runs on its device, is one
engine's and one thread's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.engine.admission import (
    check_fork,
    check_prompt,
    check_state,
    check_terms,
    check_whole,
)
from kernelforge_runtime.engine.mixtures import check_mixture, holds_vectors
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.engine.request import Event, Request, Terms
from kernelforge_runtime.engine.stepping import Started, Stepping, alone
from kernelforge_runtime.errors import ModelError, OutOfMemoryError, RequestError, TokenizerError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.device_choice import can_choose
from kernelforge_runtime.models.inputs import Inputs, Rows
from kernelforge_runtime.models.step_size import BUCKETS
from kernelforge_runtime.ops.given_rows import GIVEN
from kernelforge_runtime.state import State
from kernelforge_runtime.text import Sampling, Tokenizer, load_tokenizer

LONGEST_PROMPT = 1 << 20
"""Tokens; what is longer is more likely a mistake than a text."""


class Engine(Stepping):
    """A model's slots, and the requests that have or await one.

    Attributes:
        model: what runs.
        slots: requests that run at once.
        chunk: tokens of a step at most: the more, the faster prompts are read, and the longer those
            who decode meanwhile wait for their next token.
        active: requests that have a slot.
        waiting: requests that have none yet, the next one first.
        steps: steps run so far.
        on_device: whether the device chooses tokens where it can.
        prefix_cache: what prompts share is read once; None: each is read from its start.
    """

    def __init__(
        self,
        model: Model | Reference,
        slots: int | None = None,
        chunk: int | None = None,
        tokenizer: Tokenizer | None = None,
        longest_prompt: int = LONGEST_PROMPT,
        on_device: bool | None = None,
        prefix_cache: PrefixCache | int | None = None,
    ) -> None:
        """An engine without requests.

        Args:
            model: loaded with as many slots at least.
            slots: the model's where None.
            chunk: from `slots` to 256; where None the model's, which it has memory for.
            tokenizer: picked by the vocabulary's size where None; where none fits, prompts are ids
                and there is no text.
            longest_prompt: tokens that a prompt may have.
            on_device: whether the device chooses tokens, so that no logits are read back; where
                None it does if it is not the CPU itself and its bundles have the kernel.
            prefix_cache: one that engines of this model may share, or bytes for a new one; see
                PrefixCache.

        Raises:
            RequestError: slots or chunk are not possible with this model.
            OutOfMemoryError: the host has no room for the prefix cache's budget.
        """
        self.model = model
        for name, value in (("slots", slots), ("chunk", chunk)):
            check_whole(name, value)
        check_whole("longest_prompt", longest_prompt)
        self.slots = slots if slots is not None else model.slots
        if chunk is None:
            usual = model.needs.chunk if isinstance(model, Model) else model.chunk
            chunk = max(usual, self.slots)
        self.chunk, self.longest_prompt = chunk, longest_prompt
        if not 1 <= self.slots <= model.slots:
            raise RequestError(
                f"an engine of {self.slots} slots: this model has 1 to {model.slots}; "
                + ("load it with more" if self.slots in range(1, max(BUCKETS) + 1) else "take some")
            )
        if not self.slots <= chunk <= max(BUCKETS):
            raise RequestError(
                f"steps of {chunk} tokens for {self.slots} slots: take {self.slots} to "
                f"{max(BUCKETS)}, so that every slot has its token"
            )
        self._asked_on_device = on_device
        self.on_device = self._chooses(on_device)
        if prefix_cache is not None and not isinstance(prefix_cache, PrefixCache):
            prefix_cache = PrefixCache(prefix_cache)
        if prefix_cache is not None:
            prefix_cache.require_room()
            prefix_cache.attach(model)
        self.prefix_cache = prefix_cache
        self._no_tokenizer = ""
        self.tokenizer: Tokenizer | None = tokenizer
        try:
            self.tokenizer = tokenizer or load_tokenizer("auto", model.config.vocab)
        except TokenizerError as error:
            self._no_tokenizer = str(error)
        self.active: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.steps = 0
        self._events: list[Event] = []
        self._ahead: Started | None = None
        self._numbers = 0
        self._lock = RLock()
        self._broken = False

    @property
    def is_busy(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self.active or self.waiting or self._events)

    # Requests

    def submit(
        self,
        prompt: str | Sequence[int] | Sequence[Any] | NDArray[Any],
        max_tokens: int = 100,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
        state: State | None = None,
        keep_state: bool = False,
        logits: bool = False,
    ) -> Request:
        """Queues a request; it gets a slot in a later step.

        Args:
            prompt: text, or token ids; or vectors [T, C] in place of them (see Model.forward), or a
                list of ids, lists of ids, and arrays of vectors, [C] or [T, C].
            max_tokens: see Terms, as for what is not explained here.
            sampling: the official defaults where None; without a seed it gets one.
            stop: strings.
            stop_tokens: ids.
            state: to start from; copied, so that many requests can start from one.
            keep_state: whether the state outlives the request.
            logits: whether events carry logits.

        Raises:
            RequestError: what is asked is not possible. Nobody else notices.
        """
        try:
            vocab, why = self.model.config.vocab, self._no_tokenizer
            rows: Rows = None
            if holds_vectors(prompt):
                mixture = check_mixture(prompt, self.model, self.longest_prompt)
                ids, rows = mixture.ids, mixture.rows
            else:
                ids = check_prompt(prompt, vocab, self.tokenizer, why, self.longest_prompt)
            terms = self._terms(max_tokens, sampling, stop, stop_tokens)
            terms = replace(terms, keep_state=keep_state, logits=logits)
            with self._lock:  # the state may be on the device, and a step being written
                if rows is not None:
                    self.model.require_vectors()
                start = check_state(state, self.model) if state is not None else None
                shown = ids if rows is None else np.where(ids == GIVEN, np.uint32(0), ids)
                return self._queue(shown, terms, start, (), ids, rows)
        except (ModelError, OutOfMemoryError, TokenizerError) as error:
            raise RequestError(f"request refused: {error}") from None

    @alone
    def fork(
        self,
        request: Request,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        keep_state: bool | None = None,
        logits: bool | None = None,
    ) -> Request:
        """A new request that goes on from where this one is; with its seed it says the same.

        Args:
            request: waits, runs, or has ended and kept its state.
            max_tokens: in all, those of `request` included; as for it where None, as the others.
            sampling: for what comes.
            keep_state: see submit.
            logits: see submit.

        Raises:
            RequestError: its state is gone, or nothing is left to go on with.
        """
        old = request.terms
        try:
            terms = self._terms(
                old.max_tokens if max_tokens is None else max_tokens,
                old.sampling if sampling is None else sampling,
                *(old.stop, [*old.stop_tokens]),
            )
            first = self._logits_ahead(request) if not len(request.pending) else None
            follows = first is not None or request.first is not None
            state = check_fork(request, terms.max_tokens, self.model, follows)
        except (ModelError, TokenizerError) as error:
            raise RequestError(f"fork refused: {error}") from None
        terms = replace(
            terms,
            keep_state=old.keep_state if keep_state is None else keep_state,
            logits=old.logits if logits is None else logits,
        )
        how = request.tokens, request.pending, request.rows
        made = self._queue(request.prompt, terms, state, *how)
        made.first = first if first is not None else request.first
        made.from_start = request.from_start
        made.parting, made.spelling = request.parting, request.spelling
        return made

    @alone
    def cancel(self, request: Request) -> bool:
        """Ends a request at once, wherever it is; False where it had ended already."""
        if request.reason is not None:
            return False
        if request in self.waiting:
            self.waiting.remove(request)
        elif request in self.active:
            self.active.remove(request)
        else:
            raise RequestError(f"request {request.id} is another engine's: cancel it there")
        self._told(request.end("cancelled"))
        return True

    @alone
    def state_of(self, request: Request) -> State:
        """A copy of a request's state after all of its tokens, those that are pending included.

        Raises:
            RequestError: it is gone.
        """
        if request.state is None and request.reason is not None:
            raise RequestError(f"request {request.id} has ended without its state: ask to keep it")
        state = request.state.clone() if request.state is not None else self.model.new_state()
        for piece in Inputs(request.pending, request.rows).pieces(self.chunk):
            self.model.advance([piece.ids], [state], 0, piece.rows)
        self.model.release(state)  # it must not keep a slot from who runs
        return state

    def save(self, request: Request, path: str | os.PathLike[str]) -> None:
        """Writes the state after all of a request's tokens; `load` and submit go on from it."""
        self.state_of(request).save(path)

    def load(self, path: str | os.PathLike[str]) -> State:
        """Reads a state file of this model."""
        return self.model.load_state(path)

    @alone
    def reopen(self, model: Model | Reference) -> None:
        """Goes on with the model loaded anew, after its device was lost; no request is given up.

        Who had a slot starts again from its first state and runs what it had run, so that its text
        goes on as it would have (but for rounding). The lost device and its model are the caller's
        to close.

        Args:
            model: of the same file, with as many slots at least.

        Raises:
            RequestError: it is another model, or has too few slots.
        """
        if model.hash != self.model.hash or model.config != self.model.config:
            raise RequestError("an engine goes on with the same model only: load the same file")
        if model.slots < self.slots:
            raise RequestError(
                f"an engine of {self.slots} slots: this model has {model.slots}; load it with more"
            )
        before, cache = self.model, self.prefix_cache
        if cache is not None:
            cache.attach(model, instead=before)
            if (before.formats, before.activations) != (model.formats, model.activations):
                cache.clear()  # what this one makes of the same tokens is rounded otherwise
        self.model = model
        self.on_device = self._chooses(self._asked_on_device)
        self._start_again()

    # Steps

    def run(self) -> Iterator[Event]:
        """Steps until every request has ended; more may be submitted and cancelled meanwhile."""
        while self.is_busy:
            yield from self.step()

    def _chooses(self, asked: bool | None) -> bool:
        model = self.model
        able = isinstance(model, Model) and can_choose(model.kernels, model.config.vocab)
        if asked and not able:
            raise RequestError("tokens chosen on the device: its bundles have no kernel `sample`")
        if asked is None:
            return able and isinstance(model, Model) and model.device.info.device_type != "cpu"
        return asked

    def _queue(
        self,
        ids: NDArray[np.uint32],
        terms: Terms,
        state: State | None,
        tokens: Sequence[int] = (),
        pending: NDArray[np.uint32] | None = None,
        rows: Rows = None,
    ) -> Request:
        self._numbers += 1
        request = Request(self._numbers, ids, terms, self.tokenizer, tokens)
        request.state, request.rows = state, rows
        request.pending = ids if pending is None else pending
        request.remember()
        self.waiting.append(request)
        return request

    def _terms(
        self, max_tokens: int, sampling: Sampling | None, stop: Any, stop_tokens: Any
    ) -> Terms:
        why = self._no_tokenizer if self.tokenizer is None else None
        vocab = self.model.config.vocab
        return check_terms(max_tokens, sampling, stop, stop_tokens, vocab, why)
