"""Where a model's residual stream may be looked at, and by whom.

A model file says `ops.observe(block, part, x)` behind each part of a block; both op sets note it.
Nothing is computed for it, and nothing changes in a step that nobody looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

EMBEDDING = -1
"""The `block` of what is there before the first one."""
EMBEDDING_PART = "embedding"
"""The `part` of what the embedding table gave, before `ln0`."""


@dataclass(frozen=True)
class Place:
    """Where the residual stream is looked at.

    Attributes:
        block: of the model, from 0; EMBEDDING before the first one.
        part: what it stands behind: `embedding`, `first norm`, `time mix`, `channel mix`, `rosa`.
        ends_block: whether the block ends here: this is its output.
    """

    block: int
    part: str
    ends_block: bool


@dataclass(frozen=True)
class Mark:
    """What an op set notes of a place.

    Attributes:
        block: see Place.
        part: see Place.
        x: the residual stream as the op set has it, [T, C].
        scale: what it is multiplied by to be what it is in float32 (see RESCALE_EVERY).
        calls: dispatches of the step so far.
    """

    block: int
    part: str
    x: Any
    scale: float = 1.0
    calls: int = 0


class Observer(Protocol):
    """Who looks at the residual stream while a model runs: `forward(..., hidden=observer)`."""

    def begin(self, layers: int, version: str) -> None:
        """A run starts, of a model with so many layers.

        Raises:
            ModelError: what is wanted is not there.
        """

    def wants(self, place: Place) -> bool:
        """Whether to be shown this place; asked once per place and run."""

    def see(self, place: Place, values: NDArray[np.float32]) -> None:
        """The residual stream [T, C] there, of the tokens of one chunk: the observer's own copy."""


def places(marks: Sequence[Mark]) -> list[Place]:
    """The places of a step's marks, in order."""
    last = {mark.block: i for i, mark in enumerate(marks)}
    return [Place(m.block, m.part, last[m.block] == i) for i, m in enumerate(marks)]
