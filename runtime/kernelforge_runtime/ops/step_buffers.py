"""What travels to the device and back at each step: one buffer that the host sees, in two halves.

A step reads one half while the host writes the next step's into the other. Tokens that a step
chooses go to where the next one reads its own, so that it can be submitted before they are known.
A device whose fast memory the host does not see copies a half into it as the step begins; what is
read once, how to choose, it reads where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.sampling import CHOICE_WORDS
from kernelforge_runtime.ops.given_rows import HALVES, MOST_TOKENS
from kernelforge_runtime.plan.arena import reserved
from kernelforge_runtime.vk import Buffer, BufferSlice, Device


@dataclass(frozen=True)
class StepInputs:
    """One half, as a step's dispatches bind it.

    Attributes:
        token: u32 [T], token ids.
        owner: u32 [T], each token's sequence.
        segment: u32 [T, 4], of each sequence: first token, count, slot, position.
        choice: u32 [slots, CHOICE_WORDS], how tokens are chosen; of both halves the same.
        penalty: u32 [slots, penalties, 2]; of both halves the same.
        chosen: u32 [T], the tokens of the other half: where this step's choice goes.
        brought: what is to be copied before the first dispatch, and where to.
    """

    token: BufferSlice
    owner: BufferSlice
    segment: BufferSlice
    choice: BufferSlice
    penalty: BufferSlice
    chosen: BufferSlice
    brought: tuple[tuple[BufferSlice, BufferSlice], ...] = ()

    @property
    def slices(self) -> tuple[BufferSlice, ...]:
        """Everything that is bound, in the same order for either half."""
        return self.token, self.owner, self.segment, self.choice, self.penalty, self.chosen


class StepBuffers:
    """The buffer, and views of it; owns device memory.

    Attributes:
        halves: of the buffer, as steps bind them.
        choices: u32 [slots, CHOICE_WORDS], for the host to write.
        penalties: u32 [slots, penalties, 2], likewise.
    """

    def __init__(self, device: Device, slots: int, penalties: int) -> None:
        """All zero.

        Args:
            device: owner of the memory.
            slots: sequences of a step at most.
            penalties: for which every slot has room.
        """
        parts = (4 * MOST_TOKENS, 4 * MOST_TOKENS, 16 * MOST_TOKENS)
        half = sum(reserved(size) for size in parts)
        choice_bytes, penalty_bytes = 4 * CHOICE_WORDS * slots, 8 * penalties * slots
        choice_at = HALVES * half
        penalty_at = choice_at + reserved(choice_bytes)
        self._made: list[Buffer] = []
        try:
            host = self._buffer(device, penalty_at + penalty_bytes, "step inputs", True)
            near = host
            if not device.placement(False).mapped:
                near = self._buffer(device, HALVES * half, "step inputs, near", False)
        except BaseException:
            self.close()
            raise
        words = host.view(np.uint32)
        self.choices: NDArray[np.uint32] = _part(words, choice_at, choice_bytes).reshape(slots, -1)
        self.penalties: NDArray[np.uint32] = _part(words, penalty_at, penalty_bytes).reshape(
            slots, penalties, 2
        )
        choice, penalty = host.slice(choice_at, choice_bytes), host.slice(penalty_at, penalty_bytes)
        self._tokens: list[NDArray[np.uint32]] = []
        self._owners: list[NDArray[np.uint32]] = []
        self._segments: list[NDArray[np.uint32]] = []
        found = []
        for index in range(HALVES):
            slices, at = [], index * half
            for size in parts:
                slices.append(near.slice(at, size))
                at += reserved(size)
            start, other = index * half, (HALVES - 1 - index) * half
            views = [_part(words, piece.offset, piece.nbytes) for piece in slices]
            self._tokens.append(views[0])
            self._owners.append(views[1])
            self._segments.append(views[2].reshape(-1, 4))
            brought = (host.slice(start, half), near.slice(start, half))
            found.append(
                StepInputs(
                    token=slices[0],
                    owner=slices[1],
                    segment=slices[2],
                    choice=choice,
                    penalty=penalty,
                    chosen=host.slice(other, 4 * MOST_TOKENS),
                    brought=(brought,) if near is not host else (),
                )
            )
        self.halves: tuple[StepInputs, ...] = tuple(found)

    def _buffer(self, device: Device, nbytes: int, name: str, host_visible: bool) -> Buffer:
        self._made.append(device.buffer(nbytes, name, host_visible))
        self._made[-1].fill(0)
        return self._made[-1]

    def write(
        self,
        half: int,
        pieces: Sequence[Sequence[int] | NDArray[np.uint32]] | None,
        segments: Sequence[tuple[int, int, int]],
        tokens: int,
        sequences: int,
    ) -> None:
        """Writes a step's inputs; the next submit sees them.

        Args:
            half: which the step reads.
            pieces: token ids of each sequence; None where the step before chooses them.
            segments: count, slot and position of each sequence.
            tokens: T of the plan; those behind the last sequence belong to nobody.
            sequences: B of the plan.
        """
        owner, segment, at = self._owners[half], self._segments[half], 0
        for i, (count, slot, position) in enumerate(segments):
            if pieces is not None:
                self._tokens[half][at : at + count] = pieces[i]
            owner[at : at + count] = i
            segment[i] = at, count, slot, position & 0xFFFFFFFF
            at += count
        if pieces is not None:  # else the step before writes them all
            self._tokens[half][at:tokens] = 0
        segment[len(segments) : sequences] = 0
        owner[at:tokens] = 0

    def tokens(self, half: int) -> NDArray[np.uint32]:
        """A view of the token ids that the steps of a half read."""
        return self._tokens[half]

    def chosen(self, half: int) -> NDArray[np.uint32]:
        """A view of the tokens that the steps of a half choose."""
        return self._tokens[HALVES - 1 - half]

    def close(self) -> None:
        """Releases the memory."""
        for buffer in self._made:
            buffer.close()


def _part(words: NDArray[np.uint32], at: int, nbytes: int) -> NDArray[np.uint32]:
    return words[at // 4 : (at + nbytes) // 4]
