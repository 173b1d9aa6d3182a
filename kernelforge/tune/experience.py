"""What other devices know about a recorded space.

Where a space was recorded on other devices, more is known than a few winners: how every single
configuration did there. Of this a search can learn as it goes on how far it holds (`transfer`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge.tune.encoded import Encoded
from kernelforge.tune.portfolio import MOST, cover
from kernelforge.tune.recorded import RecordedSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Experience:
    """How a space's configurations did on other devices.

    Attributes:
        logs: [devices, configurations] logarithm of how many times as long as the device's best
            each took; the worst of the device where it failed, the median where it was not tried.
        members: numbers of the configurations to try, those that cover most first.
    """

    logs: Floats
    members: tuple[int, ...]

    @property
    def mean(self) -> Floats:
        """[configurations] of all devices."""
        return np.asarray(self.logs.mean(axis=0), np.float64)

    @property
    def digest(self) -> str:
        """Tells experience of other devices apart."""
        return hashlib.sha256(self.logs.tobytes()).hexdigest()[:8]


def experience_of(
    space: RecordedSpace, others: Sequence[RecordedSpace], most: int = MOST
) -> Experience | None:
    """What other spaces of the same parameters know about a space.

    Args:
        space: what will be searched; its own times are not looked at.
        others: spaces of any parameters; those that have others than this one are left out.
        most: members at the most.

    Returns:
        None where no other space has its parameters, or none of them has a configuration of it
        that works.
    """
    names = set(space.configs[0])
    frozen = [frozenset(config.items()) for config in space.configs]
    rows = [_row(frozen, other) for other in others if set(other.configs[0]) == names]
    logs = np.array([row for row in rows if row is not None])
    if not len(logs):
        return None
    return experience_from(logs, space.encoded, most)


def experience_from(logs: Floats, encoded: Encoded, most: int) -> Experience:
    """The same from the logarithms themselves; see `Experience.logs`."""
    shares = np.exp(-logs)
    none, same = np.zeros(len(shares)), np.ones(len(shares))
    return Experience(logs, tuple(cover(shares, none, same, encoded.codes, most)))


def _row(configs: Sequence[frozenset[tuple[str, object]]], other: RecordedSpace) -> Floats | None:
    works = np.isfinite(other.times_ms)
    if not works.any():
        return None
    logs = np.log(np.where(works, other.times_ms, other.times_ms[works].max()) / other.optimum_ms)
    known = {frozenset(c.items()): float(v) for c, v in zip(other.configs, logs, strict=True)}
    row = np.array([known.get(config, math.nan) for config in configs])
    if np.isnan(row).all():
        return None
    return np.where(np.isnan(row), np.nanmedian(row), row)
