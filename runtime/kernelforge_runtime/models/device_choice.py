"""Lets the device choose tokens: what a step's rows are told.

Penalties travel as pairs of a token and a number, made from the sampler's own counts, so that host
and device subtract the same. A text with more different tokens than there is room for is chosen on
the host again; nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.sampling import DRAW, LARGEST, SKIP
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.ops.step_buffers import StepBuffers

MOST_PENALTIES = 1024
"""Different tokens that a row's penalties may be of; 8 KiB for each slot."""


@dataclass(frozen=True)
class Choice:
    """How one row's token is to be chosen; as text's Sampling, with the draw to be made.

    Attributes:
        largest: the largest (penalised) logit wins.
        seed: 64 bits of it are used.
        count: draws before this one.
        penalties: token -> what is subtracted from its logit.
    """

    largest: bool
    temperature: float
    top_p: float
    top_k: int
    seed: int
    count: int
    penalties: Mapping[int, float]


def can_choose(kernels: KernelSet, vocab: int) -> bool:
    """Whether the bundles have a kernel for it."""
    try:
        kernels.select("sample", "f32", Problem(V=vocab, M=vocab, B=1, H=MOST_PENALTIES))
    except BundleError:
        return False
    return True


def tell(buffers: StepBuffers, choices: Sequence[Choice | None]) -> None:
    """Writes what each row is to do; rows without a choice, and those behind, are skipped."""
    words, penalties = buffers.choices, buffers.penalties
    numbers = words.view(np.float32)
    words[:, 0] = SKIP
    for row, choice in enumerate(choices):
        if choice is None:
            continue
        pairs = len(choice.penalties)
        words[row, :6] = (
            LARGEST if choice.largest else DRAW,
            pairs,
            choice.seed & 0xFFFFFFFF,
            choice.seed >> 32 & 0xFFFFFFFF,
            choice.count & 0xFFFFFFFF,
            min(choice.top_k, 0xFFFFFFFF),
        )
        inverse = 1.0 if choice.largest else 1.0 / choice.temperature
        numbers[row, 6:] = choice.top_p, min(inverse, 1e30)
        if pairs:
            penalties[row, :pairs, 0] = list(choice.penalties)
            penalties.view(np.float32)[row, :pairs, 1] = list(choice.penalties.values())
