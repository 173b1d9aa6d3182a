"""Which sizes of step are recorded, and how many tokens of which sequence go into one."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.vulkan_step import StepSize

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of tokens that plans are recorded for; a step runs in the smallest that holds it."""


def step_size(counts: Sequence[int], slots: int, given: bool = False) -> StepSize:
    """The plan for a step with so many tokens of each sequence; `given`: vectors among them."""
    sequences = min(next(b for b in BUCKETS if b >= len(counts)), slots)
    if max(counts) == 1:
        return StepSize(sequences, sequences, True, given)
    tokens = next(b for b in BUCKETS if b >= sum(counts))
    return StepSize(tokens, sequences, False, given)


def check_chunk(chunk: Any) -> int:
    """Tokens of a step, as somebody has asked for them.

    Raises:
        ModelError: no step can have so many.
    """
    whole = isinstance(chunk, (int, np.integer)) and not isinstance(chunk, bool)
    if not whole or not 1 <= chunk <= max(BUCKETS):
        raise ModelError(
            f"chunk is {reprlib.repr(chunk)}, it must be a whole number from 1 to {max(BUCKETS)}: "
            "the tokens of one step; a longer prompt goes in pieces"
        )
    return int(chunk)


def share(budget: int, left: Mapping[int, int]) -> dict[int, int]:
    """How many tokens each sequence gets of a step, as evenly as their lengths allow.

    Args:
        budget: tokens of the step.
        left: tokens that each sequence still has; those that get none wait for the next step.
    """
    parts: dict[int, int] = {}
    waiting = sorted(left, key=lambda i: left[i])  # what short ones leave goes to the longer ones
    for n, i in enumerate(waiting):
        count = min(left[i], budget // (len(waiting) - n))
        if count:
            parts[i] = count
            budget -= count
    return {i: parts[i] for i in left if i in parts}
