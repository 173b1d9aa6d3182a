"""What the recurrent state of one sequence takes."""

from __future__ import annotations

import math

from kernelforge_runtime.models.base import ModelConfig


def state_bytes(config: ModelConfig) -> int:
    """Of the state that stays the same after one token and after a million."""
    return sum(
        spec.dtype.nbytes(math.prod(spec.extent(0)))
        for spec in config.states.values()
        if not spec.symbols_per_word
    )


def bytes_per_token(config: ModelConfig) -> float:
    """Of what grows with every token that a sequence has consumed: ROSA's histories."""
    return sum(
        spec.dtype.nbytes(math.prod(spec.extent(0))) / spec.symbols_per_word
        for spec in config.states.values()
        if spec.symbols_per_word
    )
