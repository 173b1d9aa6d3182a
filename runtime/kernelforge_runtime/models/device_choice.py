"""Lets the device choose tokens: what a step's rows are told, and what they answer.

Penalties travel as pairs of a token and a number, made from the sampler's own counts, so that host
and device subtract the same. A text with more different tokens than there is room for is chosen on
the host again; nothing is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.sampling import CHOICE_WORDS, DRAW, LARGEST, SKIP
from kernelforge_runtime.bundle.select import KernelSet
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.vk import Buffer, Device

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


class ChoiceBuffers:
    """What travels at each step, host visible.

    Attributes:
        choice: u32 [slots, CHOICE_WORDS].
        penalty: u32 [slots, MOST_PENALTIES, 2].
        token: u32 [slots], the answers.
    """

    def __init__(self, device: Device, slots: int) -> None:
        self._made: list[Buffer] = []
        try:
            self.choice = self._buffer(device, "choices", slots * CHOICE_WORDS)
            self.penalty = self._buffer(device, "penalties", slots * MOST_PENALTIES * 2)
            self.token = self._buffer(device, "chosen tokens", slots)
        except BaseException:
            self.close()
            raise
        self._words = self.choice.view(np.uint32).reshape(slots, CHOICE_WORDS)
        self._numbers = self.choice.view(np.float32).reshape(slots, CHOICE_WORDS)
        self._tokens = self.penalty.view(np.uint32).reshape(slots, MOST_PENALTIES, 2)
        self._penalties = self.penalty.view(np.float32).reshape(slots, MOST_PENALTIES, 2)

    def _buffer(self, device: Device, name: str, words: int) -> Buffer:
        self._made.append(device.buffer(4 * words, name, host_visible=True))
        self._made[-1].fill(0)
        return self._made[-1]

    def tell(self, choices: Sequence[Choice | None]) -> None:
        """Writes what each row is to do; rows without a choice, and those behind, are skipped."""
        self._words[:, 0] = SKIP
        for row, choice in enumerate(choices):
            if choice is None:
                continue
            pairs = len(choice.penalties)
            self._words[row, :6] = (
                LARGEST if choice.largest else DRAW,
                pairs,
                choice.seed & 0xFFFFFFFF,
                choice.seed >> 32 & 0xFFFFFFFF,
                choice.count & 0xFFFFFFFF,
                min(choice.top_k, 0xFFFFFFFF),
            )
            inverse = 1.0 if choice.largest else 1.0 / choice.temperature
            self._numbers[row, 6:] = choice.top_p, min(inverse, 1e30)
            if pairs:
                self._tokens[row, :pairs, 0] = list(choice.penalties)
                self._penalties[row, :pairs, 1] = list(choice.penalties.values())

    def answers(self, rows: int) -> NDArray[np.uint32]:
        """The tokens of the first rows, u32; NO_TOKEN where there was nothing to choose from."""
        return self.token.view(np.uint32)[:rows].copy()

    def close(self) -> None:
        """Releases them."""
        for buffer in self._made:
            buffer.close()
