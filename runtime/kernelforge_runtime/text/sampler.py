"""Chooses the next token from logits.

The rules are those of the official RWKV package, in its order: penalties on the logits, softmax,
top-p, top-k, and only then temperature, as a power on the probabilities that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import KernelForgeError, ModelError
from kernelforge_runtime.text.tokenizer import Tokenizer

_FREE_TEXT = " \t0123456789"
"""Tokens whose text is part of this are not counted: numbers and layout may repeat."""
_PENALTY = 0.2


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens.

    Attributes:
        temperature: power 1/temperature on the kept probabilities; 0 takes the largest.
        top_p: keep the likeliest tokens that together reach this probability, ties included;
            0 takes the largest, 1 keeps all.
        top_k: then keep at most this many; 0 keeps all.
        presence: subtracted from the logit of every token chosen before. Unset: 0.2, and 0 where
            the temperature is 0, so that greedy means the largest logit.
        frequency: subtracted once more for each time it was chosen. Unset: as `presence`.
        decay: counts shrink by this factor with every token, in [0, 1].
        seed: for repeatable choices; None draws a fresh one.
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    presence: float | None = None
    frequency: float | None = None
    decay: float = 0.996
    seed: int | None = None

    def __post_init__(self) -> None:
        default = 0.0 if self.temperature == 0 else _PENALTY
        for name in ("presence", "frequency"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        _require(self, "temperature", "a number from 0 up", lambda v: v >= 0)
        _require(self, "top_p", "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _require(self, "top_k", "a whole number from 0 up", _is_count)
        _require(self, "presence", "a number from -1000 to 1000", lambda v: abs(v) <= 1000)
        _require(self, "frequency", "a number from -1000 to 1000", lambda v: abs(v) <= 1000)
        _require(self, "decay", "a number from 0 to 1", lambda v: 0 <= v <= 1)
        if self.seed is not None:
            _require(self, "seed", "a whole number from 0 up", _is_count)

    @property
    def has_penalties(self) -> bool:
        """Whether earlier choices change later ones."""
        return bool(self.presence or self.frequency)

    @property
    def takes_largest(self) -> bool:
        """Whether the largest (penalised) logit always wins, so nothing is drawn."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is the largest logit as it comes: a device can make it."""
        return self.takes_largest and not self.has_penalties


class Sampler:
    """The choices of one sequence: counts what was chosen, owns its random numbers."""

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: Tokenizer | None = None,
        draw: Callable[[], float] | None = None,
    ) -> None:
        """Starts a sequence.

        Args:
            sampling: how to choose.
            tokenizer: tells which tokens are digits and blanks, which are not counted; without
                one every token counts.
            draw: gives numbers in [0, 1) in place of the sampling's seed.
        """
        self.sampling = sampling
        self._tokenizer = tokenizer
        self._draw = draw or np.random.default_rng(sampling.seed).random
        self._places: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float64)

    @property
    def counts(self) -> dict[int, float]:
        """Token -> decayed count, for every token chosen so far."""
        return {token: float(self._counts[place]) for token, place in self._places.items()}

    @property
    def penalties(self) -> dict[int, float]:
        """Token -> what is subtracted from its logit, for every token chosen so far."""
        presence, frequency = self.sampling.presence or 0.0, self.sampling.frequency or 0.0
        return {token: presence + n * frequency for token, n in self.counts.items()}

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The next token; it is counted. `logits` is left as it is.

        Args:
            logits: float32 [V]; minus infinity forbids a token.

        Raises:
            ModelError: NaN among the logits, or nothing left to choose.
        """
        token = self._pick(self._penalised(logits))
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Counts a token that was chosen elsewhere, on the device for one."""
        if not self.sampling.has_penalties:
            return
        used = len(self._places)
        self._counts[:used] *= self.sampling.decay
        place = self._places.get(token)
        if place is None:
            if used == len(self._tokens):
                self._tokens = np.resize(self._tokens, 2 * used)
                self._counts = np.resize(self._counts, 2 * used)
            place = self._places[token] = used
            self._tokens[place], self._counts[place] = token, 0.0
        if not self._is_free(token):
            self._counts[place] += 1.0

    def _is_free(self, token: int) -> bool:
        if self._tokenizer is None:
            return False
        return self._tokenizer.decode([token]).decode("utf-8", "replace") in _FREE_TEXT

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        used = len(self._places)
        if used == 0:
            return logits
        presence, frequency = self.sampling.presence or 0.0, self.sampling.frequency or 0.0
        logits = logits.astype(np.float32)
        penalty = presence + self._counts[:used] * frequency
        logits[self._tokens[:used]] -= penalty.astype(np.float32)
        return logits

    def _pick(self, logits: NDArray[np.float32]) -> int:
        best = int(np.argmax(logits))  # NaN is the largest to argmax
        largest = float(logits[best])
        if not math.isfinite(largest):
            raise ModelError(
                f"the largest of {len(logits)} logits is {largest} (token {best}): the weights or "
                "a kernel are damaged; check the model file, then `kernelforge inspect --check`"
            )
        sampling = self.sampling
        if sampling.takes_largest:
            return best
        weights = np.exp(logits.astype(np.float64) - largest)
        cutoff = _top_p_cutoff(weights, sampling.top_p)
        kept = np.flatnonzero(weights >= cutoff)
        if 0 < sampling.top_k < len(kept):
            order = np.argsort(-weights[kept], kind="stable")[: sampling.top_k]
            kept = np.sort(kept[order])
        # Divided by the largest, which is 1: a small temperature cannot underflow it.
        scaled = weights[kept] ** (1.0 / sampling.temperature)
        total = np.cumsum(scaled)
        place = int(np.searchsorted(total, self._draw() * total[-1], side="right"))
        return int(kept[min(place, len(kept) - 1)])


def _top_p_cutoff(weights: NDArray[np.float64], top_p: float) -> float:
    """The smallest weight to keep: the first, from the largest down, at which the sum gets there.

    Args:
        weights: float64 [V], not normalised.
        top_p: in (0, 1]; 1 keeps everything that has any weight.
    """
    if top_p >= 1:
        return float(np.nextafter(0.0, 1.0))
    ranked = np.sort(weights)[::-1]
    reached = np.cumsum(ranked)
    place = int(np.searchsorted(reached, top_p * reached[-1], side="left"))
    return max(float(ranked[min(place, len(ranked) - 1)]), float(np.nextafter(0.0, 1.0)))


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and bool(value >= 0)


def _require(sampling: Sampling, name: str, range_: str, is_valid: Any) -> None:
    value = getattr(sampling, name)
    number = isinstance(value, (int, float, np.integer, np.floating))
    if not number or isinstance(value, bool) or not math.isfinite(value) or not is_valid(value):
        raise KernelForgeError(f"sampling: {name} is {value!r}, it must be {range_}")
