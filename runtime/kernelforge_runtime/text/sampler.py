"""Chooses the next token from logits.

The rules are those of the official RWKV package, in its order: penalties on the logits, softmax,
top-p, top-k, and only then temperature, as a power on the probabilities that are left.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import KernelForgeError, ModelError
from kernelforge_runtime.text.draws import SEED_BITS, uniform
from kernelforge_runtime.text.tokenizer import Tokenizer

_FREE_TEXT = " \t0123456789"
"""Tokens whose text is part of this are not counted: numbers and layout may repeat."""
_PENALTY = 0.2
FARTHEST = 104.0
"""A logit so far below the largest has no weight: exp(-104) is no float32 any more, as the official
package and devices compute it. Else a high temperature would bring back what they cannot draw."""


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
        seed: for repeatable choices; None draws a fresh one. Whoever generates with it, one text or
            many at once, on the host or on a device, makes the same draws: see `draws`.
    """

    temperature: float = 1.0
    top_p: float = 0.85
    top_k: int = 0
    presence: float | None = None
    frequency: float | None = None
    decay: float = 0.996
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(self, "temperature", "a number from 0 up", lambda v: v >= 0)
        default = 0.0 if self.temperature == 0 else _PENALTY
        for name in ("presence", "frequency"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        _require(self, "top_p", "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _require_count(self, "top_k")
        _require(self, "presence", "a number from -1000 to 1000", lambda v: abs(v) <= 1000)
        _require(self, "frequency", "a number from -1000 to 1000", lambda v: abs(v) <= 1000)
        _require(self, "decay", "a number from 0 to 1", lambda v: 0 <= v <= 1)
        if self.seed is not None:
            _require_count(self, "seed")

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
    """The choices of one sequence: counts what was chosen, and makes its random draws."""

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer | None = None) -> None:
        """Starts a sequence.

        Args:
            sampling: how to choose.
            tokenizer: tells which tokens are digits and blanks, which are not counted; without
                one every token counts.
        """
        self.sampling = sampling
        self._tokenizer = tokenizer
        self._seed = secrets.randbits(SEED_BITS) if sampling.seed is None else sampling.seed
        self._accepted = 0
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
        self._accepted += 1
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
        if self.sampling.takes_largest:
            return best
        kept, weights = candidates(logits, self.sampling)
        total, draw = np.cumsum(weights), uniform(self._seed, self._accepted)
        place = int(np.searchsorted(total, draw * total[-1], side="right"))
        return int(kept[min(place, len(kept) - 1)])


def candidates(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The tokens to draw from, ascending, and their weights; the largest weight is 1.

    Args:
        logits: float32 [V], penalised; the largest is finite.
        sampling: one that draws.
    """
    largest = logits.max()
    weights = np.exp(logits.astype(np.float64) - float(largest))
    cutoff = _top_p_cutoff(weights, sampling.top_p)
    kept = np.flatnonzero((weights >= cutoff) & (largest - logits <= FARTHEST))
    if 0 < sampling.top_k < len(kept):
        order = np.argsort(-weights[kept], kind="stable")[: sampling.top_k]
        kept = np.sort(kept[order])
    # Divided by the largest, which is 1: a small temperature cannot underflow it.
    return kept, weights[kept] ** (1.0 / sampling.temperature)


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


def _require(sampling: Sampling, name: str, range_: str, is_valid: Callable[[float], bool]) -> None:
    """Makes a setting a float, so that NumPy's narrow types do not overflow later on."""
    value = getattr(sampling, name)
    number = isinstance(value, (int, float, np.integer, np.floating))
    try:
        plain = float(value) if number and not isinstance(value, bool) else math.nan
    except OverflowError:
        plain = math.inf
    if not math.isfinite(plain) or not is_valid(plain):
        raise KernelForgeError(f"sampling: {name} is {_short(value)}, it must be {range_}")
    object.__setattr__(sampling, name, plain)


def _require_count(sampling: Sampling, name: str) -> None:
    """The same for whole numbers, of any size."""
    value = getattr(sampling, name)
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 0:
        raise KernelForgeError(
            f"sampling: {name} is {_short(value)}, it must be a whole number from 0 up"
        )
    object.__setattr__(sampling, name, int(value))


def _short(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python spells no number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
