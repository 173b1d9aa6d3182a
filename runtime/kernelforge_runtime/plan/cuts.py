"""Where a plan is cut into submits, so that none lasts as long as a watchdog allows.

Drivers end whoever keeps a graphics card busy for some seconds with one submit. What a dispatch
takes is not known before it ran: the first run goes in small parts, whose times then say which may
go together. A part that is too long later is halved.
"""

from __future__ import annotations

from collections.abc import Sequence

LIMIT_S = 0.25
"""Of one submit; watchdogs wait for two seconds and more."""
FIRST_DISPATCHES = 8
"""Of a part of the first run."""


class Cuts:
    """The parts of one plan.

    Attributes:
        ends: for each part, how many dispatches come before its end.
    """

    def __init__(self, dispatches: int, limit_s: float | None) -> None:
        """Before the first run.

        Args:
            dispatches: of the plan.
            limit_s: what a part may take; None where nothing watches: then there is one part.
        """
        self._limit = limit_s
        step = dispatches if limit_s is None else FIRST_DISPATCHES
        self.ends = [*range(step, dispatches, step), dispatches] if dispatches else [0]
        self._measured = False

    @property
    def is_measured(self) -> bool:
        """Whether the parts are what a run's times made them, or nothing is to be measured."""
        return self._measured or self._limit is None

    def learn(self, seconds: Sequence[float]) -> bool:
        """Takes what each part of a run took; whether the parts are others from here on."""
        if self._limit is None:
            return False
        before, ends = 0, []
        for end, took in zip(self.ends, seconds, strict=True):
            if took > self._limit and end - before > 1:
                ends.append((before + end) // 2)
            ends.append(end)
            before = end
        if len(ends) == len(self.ends) and not self._measured:
            ends = self._merged(seconds)
        self._measured = True
        changed, self.ends = ends != self.ends, ends
        return changed

    def _merged(self, seconds: Sequence[float]) -> list[int]:
        """Parts together up to half of the limit: clocks may be slower another time."""
        assert self._limit is not None
        ends: list[int] = []
        spent = 0.0
        for end, took in zip(self.ends, seconds, strict=True):
            if ends and spent + took <= self._limit / 2:
                ends[-1], spent = end, spent + took
            else:
                ends.append(end)
                spent = took
        return ends


def submit_limit(device_type: str) -> float | None:
    """Seconds that a submit may take on such a device; None on a CPU, which nothing watches."""
    return None if device_type == "cpu" else LIMIT_S
