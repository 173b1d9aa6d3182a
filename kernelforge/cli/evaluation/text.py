"""How well a model predicts a text: bits per byte, and perplexity per token."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.text import Tokenizer

CHUNK = 256
"""Tokens whose logits are held at once."""
MOST_BITS = 1024
"""Of a token, whose perplexity a float can no longer hold."""


@dataclass(frozen=True)
class TextScore:
    """What predicting a text cost.

    Attributes:
        bits: in all, of every token but the first, which nothing precedes.
        tokens: predicted.
        bytes: that these tokens stand for.
        seconds: it took.
    """

    bits: float
    tokens: int
    bytes: int
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Independent of the vocabulary."""
        return self.bits / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token: to be compared between models of one vocabulary only."""
        bits = self.bits / self.tokens
        return math.pow(2.0, bits) if bits < MOST_BITS else math.inf


def score_text(
    model: Model | Reference, tokenizer: Tokenizer, data: bytes, chunk: int | None = None
) -> TextScore:
    """Runs the whole text through the model as one sequence.

    Args:
        model: which predicts.
        tokenizer: of the model.
        data: the text.
        chunk: tokens per step; what is usual where None.

    Raises:
        ModelError: the text has fewer than two tokens, or a prediction is no number.
    """
    ids = np.array(tokenizer.encode(data), np.int64)
    if len(ids) < 2:
        raise ModelError(f"a text of {len(ids)} tokens: at least two are needed to predict one")
    started, state, bits = time.perf_counter(), model.new_state(), 0.0
    step = chunk or CHUNK
    for first in range(0, len(ids) - 1, step):
        piece = ids[first : min(first + step, len(ids) - 1)]
        logits, state = model.forward(piece.tolist(), state, full_output=True)
        bits += _bits(logits, ids[first + 1 : first + 1 + len(piece)])
        if not math.isfinite(bits):
            bad = int(np.argmax(~np.isfinite(logits).all(-1)))
            raise ModelError(
                f"what is predicted for token {first + bad + 1} of the text is NaN or infinite: "
                "`kernelforge run --check` shows the layer"
            )
    seconds = time.perf_counter() - started
    size = len(tokenizer.decode(ids[1:].tolist()))
    return TextScore(bits, len(ids) - 1, size, seconds)


def _bits(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> float:
    """Minus the log2 of the probability of these tokens."""
    chosen = logits[np.arange(len(wanted)), wanted].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    total = np.exp(logits - top).sum(-1, dtype=np.float64)
    return float((np.log(total) + top[:, 0] - chosen).sum()) / math.log(2)
