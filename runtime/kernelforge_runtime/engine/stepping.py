"""Runs an engine's steps, one ahead of the host: while it makes text, the device is at work.

When a step's tokens are chosen the next step is submitted first, and what they mean as text comes
after. Where the device chooses, the next step does not even wait for that: it takes the tokens from
where they were left, and the host learns of them meanwhile. A stop that is found in the text then
comes one step late: that step's share in it is discarded, and its slot is given away.

A state that is to be kept is one after the request's tokens, or after all but the last. A step
ahead leaves that so, unless it runs a token that ends the text and is none of it: who may come to
such a token is told what the device chose before the next step is submitted.

With a prefix cache texts are made before the next step is submitted, and states are kept between
the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from threading import RLock
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.engine import prefixes
from kernelforge_runtime.engine.packing import Packed, pack, states_of
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.engine.request import Event, Request
from kernelforge_runtime.errors import KernelForgeError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.device_choice import Choice
from kernelforge_runtime.models.planned import Output
from kernelforge_runtime.models.submitted import Flight


@dataclass
class Started:
    """A step that runs, or has run.

    Attributes:
        requests: that have a part in it.
        ready: those, the first of them, that a token is to be chosen for.
        flight: on a device; None where the logits are there.
        logits: [ready, V].
    """

    requests: list[Request]
    ready: list[Request]
    flight: Flight | None = None
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))


Alone = TypeVar("Alone", bound="Stepping")
Given = ParamSpec("Given")
Found = TypeVar("Found")


def alone(
    method: Callable[Concatenate[Alone, Given], Found],
) -> Callable[Concatenate[Alone, Given], Found]:
    """A method of an engine that waits until no other thread is in one, in a step for one."""

    @wraps(method)
    def waiting(engine: Alone, /, *given: Given.args, **named: Given.kwargs) -> Found:
        with engine._lock:
            return method(engine, *given, **named)

    return waiting


class Stepping:
    """What an engine does to run steps; see Engine for the attributes."""

    model: Model | Reference
    slots: int
    chunk: int
    on_device: bool
    prefix_cache: PrefixCache | None
    active: list[Request]
    waiting: deque[Request]
    steps: int
    _lock: RLock
    _broken: bool
    """Whether a step was broken off, and who had a slot has not started again."""
    _events: list[Event]
    _ahead: Started | None
    """A step that was submitted before it was asked for."""

    @alone
    def step(self) -> list[Event]:
        """Admits who waits, runs one step, and tells what came of it.

        Where it is broken off, by an interrupt for one, nobody's text is: who had a slot starts
        again, as after `reopen`, and the next step goes on.
        """
        try:
            if self._broken:
                self._start_again()
            return self._stepped()
        except BaseException:
            self._broken = True
            self._start_again()
            raise

    def _stepped(self) -> list[Event]:
        ahead, self._ahead = self._ahead, None
        fresh = self._admit()
        if ahead is not None and any(r.reason is None for r in ahead.requests):
            # Who has just come has no part in it: another step runs, as if none had been ahead.
            self._land(ahead, further=not fresh)
        else:
            fresh = True
        if fresh and self.active:
            self._land(self._start(), further=True)
        events, self._events = self._events, []
        return events

    def _start_again(self) -> None:
        """Puts everybody who has a slot back, to run again what they ran.

        Their states may be anywhere between two tokens.
        """
        self._ahead = None
        held = [*self.active]
        for request in held:
            if request.has_news:
                self._events.append(request.news())
                if request.reason is not None and not request.terms.keep_state:
                    request.state = None
        left = [request for request in held if request.reason is None]
        for request in left:
            request.rewind(self.model.new_state())
        self.waiting.extendleft(reversed(left))
        self.active, self._broken = [], False

    def _admit(self) -> bool:
        """Gives free slots to who waits; whether there is anybody new."""
        before = len(self.active)
        while self.waiting and len(self.active) < self.slots:
            request = self.waiting.popleft()
            if request.state is None:
                found = prefixes.begin(self.prefix_cache, request)
                request.state = found or self.model.new_state()
            first, request.first = request.first, None
            if first is not None and not len(request.pending):
                request.choose(first)
                self._told(request.news())
            if request.reason is None:
                self.active.append(request)
        return len(self.active) > before

    def _start(self) -> Started:
        """Runs the next step of everybody; on a device it is only submitted."""
        packed = self._packed()
        ready, given = packed.ready, (packed.pieces, packed.states)
        started = Started(packed.requests, ready)
        outputs = len(ready) if any(r.terms.max_tokens for r in ready) else 0
        if isinstance(self.model, Model):
            output: Output = "choice" if self.on_device else "last"
            started.flight = self.model.launch(*given, output, outputs, packed.rows)
        else:
            started.logits = self.model.advance(*given, outputs, packed.rows)
        packed.consume()
        return started

    def _packed(self) -> Packed:
        """Who runs what in the next step."""
        counts = pack([prefixes.piece(self.prefix_cache, r) for r in self.active], self.chunk)
        parts = list(zip(self.active, counts, strict=True))
        # Who gets to its end comes first: only those logits are read back.
        parts.sort(key=lambda part: part[1] < len(part[0].pending))
        return Packed.of(parts)

    def _land(self, started: Started, further: bool) -> None:
        """Waits for a step and takes its tokens; then submits the next one and makes the texts.

        Args:
            started: the step.
            further: whether the next step may be submitted here.
        """
        cache = self.prefix_cache
        parted = [r for r in started.requests if r.reason is None] if cache is not None else []
        states = states_of(parted)
        told = self._choose(started, further)
        self.steps += 1
        late = cache is None and further and self._runs_ahead
        events = {r: self._heard(r.news()) for r in told if r.is_over or not late}
        self.active = [r for r in self.active if r.reason is None]
        if cache is not None:
            prefixes.keep(cache, parted, states)
        del states  # of who has ended, so that their slots are free
        try:
            if further and self._ahead is None:
                self._admit()
                if self.active and self._runs_ahead:
                    self._ahead = self._start()
        finally:
            self._events += [events.get(r) or self._heard(r.news()) for r in told]
            self.active = [r for r in self.active if r.reason is None]

    def _choose(self, started: Started, further: bool) -> list[Request]:
        """Waits for a step and gives everybody a token; who got one, or nothing but their end."""
        flight, ready, model = started.flight, started.ready, self.model
        alive = [r for r in ready if r.reason is None]
        choices: list[Choice | None] = [None] * len(ready)
        tokens: NDArray[np.uint32] | None = None
        logits = started.logits
        if flight is not None:
            assert isinstance(model, Model)
            if not ready and further and self._is_steady(started):
                self._ahead = self._follow(flight)
            if self.on_device and not flight.is_parked:
                choices = [r.choice() if r in alive and r.terms.max_tokens else None for r in ready]
            by_host = [r for r, c in zip(ready, choices, strict=True) if c is None and r in alive]
            if not any(choices) or any(r.terms.max_tokens for r in by_host):
                logits = model.logits_of(flight)
            if any(choices):
                model.decide(flight, choices)
                unseen = not any(r.must_see for r in ready)
                if unseen and not by_host and further and self._is_steady(started):
                    self._ahead = self._repeat(flight, ready)
                tokens = model.tokens_of(flight)
        followed = self._ahead is not None
        for row, request in enumerate(ready):
            if request not in alive:
                continue
            if not request.terms.max_tokens:
                request.close()
            elif tokens is not None and choices[row] is not None:
                request.chosen(int(tokens[row]))
            else:
                request.choose(logits[row])
            if followed:
                request.pending = request.pending[:0]
        return alive

    @property
    def _runs_ahead(self) -> bool:
        """Whether a step may be submitted before anybody asks for it."""
        return isinstance(self.model, Model)

    def _is_steady(self, started: Started) -> bool:
        """Whether the next step is sure to be of the same requests, whatever this one gives."""
        return (
            self._runs_ahead
            and self.prefix_cache is None
            and len(started.requests) == len(self.active)
            and (not self.waiting or len(self.active) == self.slots)
            and all(r.reason is None for r in started.requests)
            and (not started.ready or len(started.ready) == len(started.requests))
            and all(len(r.tokens) + 1 < r.terms.max_tokens for r in started.ready)
        )

    def _follow(self, flight: Flight) -> Started | None:
        """Submits the next step of prompts while one goes on."""
        assert isinstance(self.model, Model)
        packed = self._packed()
        ready, given = packed.ready, (packed.pieces, packed.states)
        found = self.model.follow(flight, *given, len(ready), packed.rows)
        if found is None:
            return None
        packed.consume()
        return Started(packed.requests, ready, found)

    def _repeat(self, flight: Flight, ready: list[Request]) -> Started | None:
        """Submits the step with the tokens that the device is about to choose."""
        assert isinstance(self.model, Model)
        found = self.model.follow(flight, None, states_of(ready), len(ready))
        return Started(ready, ready, found) if found is not None else None

    def _heard(self, event: Event) -> Event:
        """Frees the slot of who has ended."""
        request = event.request
        if event.reason is not None and request.state is not None:
            if request.terms.keep_state:
                if event.reason == "cancelled" and not len(request.pending):
                    with suppress(
                        KernelForgeError
                    ):  # of a device that is gone: it ends all the same
                        request.first = self._logits_ahead(request)  # to fork it from
                self.model.release(request.state)
            else:
                request.state = None  # its slot is free from here on
        return event

    def _told(self, event: Event) -> None:
        self._events.append(self._heard(event))

    def _logits_ahead(self, request: Request) -> NDArray[np.float32] | None:
        """Logits [V] that a request's next token is chosen from, where a step with it runs."""
        ahead = self._ahead
        if ahead is None or ahead.flight is None or request not in ahead.ready:
            return None
        assert isinstance(self.model, Model)
        return self.model.peek(ahead.flight, ahead.ready.index(request))
