"""How much a tuning run may cost: trials per problem, seconds in all, and how they are shared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kernelforge.errors import TuneError

Profile = Literal["quick", "full"]

_PROFILES: dict[Profile, tuple[int, float]] = {"quick": (40, 300.0), "full": (150, 1800.0)}
_EVEN_SHARE = 0.3
"""Part of the time that is shared evenly; the rest goes by what a problem weighs in the model."""


@dataclass(frozen=True)
class Budget:
    """Limits of a tuning run; whichever is reached first ends it.

    Attributes:
        trials: per problem, never more; a variant that is built or rejected counts as one. Finals
            and crossing come on top.
        seconds: for the whole run; None for no limit.
        profile: "quick" or "full": also decides how carefully finalists are compared.
    """

    trials: int = 40
    seconds: float | None = None
    profile: Profile = "quick"

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise TuneError(f"--trials {self.trials}: use 1 or more")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise TuneError(f"--seconds {self.seconds}: use more than 0, or none for no limit")

    @classmethod
    def of(
        cls, profile: str = "quick", trials: int | None = None, seconds: float | None = None
    ) -> Budget:
        """The budget of a profile, with trials or seconds replaced where given.

        Naming only one of the two limits lifts the profile's other one for trials: someone who
        asks for 500 trials wants them.

        Raises:
            TuneError: no such profile.
        """
        known = next((name for name in _PROFILES if name == profile), None)
        if known is None:
            raise TuneError(f"--profile {profile}: expected one of {', '.join(_PROFILES)}")
        default_trials, default_seconds = _PROFILES[known]
        limit = seconds if seconds is not None else (default_seconds if trials is None else None)
        return cls(trials if trials is not None else default_trials, limit, known)

    @property
    def finalists(self) -> int:
        """How many of the best variants are measured again, beside the default."""
        return 3 if self.profile == "quick" else 5

    @property
    def rounds(self) -> int:
        """Rounds of that interleaved measurement."""
        return 7 if self.profile == "quick" else 15

    @property
    def finals_s(self) -> float:
        """Seconds for it: a tenth of the problem's time, between one and eight."""
        if self.seconds is None:
            return 4.0 if self.profile == "quick" else 8.0
        return min(8.0, max(1.0, 0.1 * self.seconds))


class Deadline:
    """A point in time by which to stop; never reached where there is no limit."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds

    @property
    def left_s(self) -> float | None:
        """Seconds left, 0 when over; None where there is no limit."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def reached(self) -> bool:
        """True when the time is over."""
        return self.left_s == 0.0


def share(left_s: float | None, weights: list[float]) -> float | None:
    """Seconds for the first of several problems that are still to do.

    Time that a problem leaves unused goes to those after it, because the share is taken anew from
    what is left.

    Args:
        left_s: seconds left for all of them; None for no limit.
        weights: what each weighs, the next one first; not all zero.
    """
    if left_s is None:
        return None
    total = sum(weights)
    part = weights[0] / total if total > 0 else 1.0 / len(weights)
    return left_s * (_EVEN_SHARE / len(weights) + (1.0 - _EVEN_SHARE) * part)
