"""Waits for a device no longer than allowed, and tells at once where it does not answer.

A kernel that never ends cannot be stopped from inside its process: releasing what it uses waits for
it, for ever. So whoever must be told is told before anything is released.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from kernelforge_runtime.errors import DeviceLostError
from kernelforge_runtime.plan import Plan

LEAST_S = 0.05


@dataclass
class Watch:
    """How long runs may take.

    Attributes:
        until: no run goes on after this point of `time.monotonic`.
        on_lost: told the reason, and whether the time was over, before the error goes on.
        late: whether the last error was a time-out, rather than a device that said it was lost.
    """

    until: float = math.inf
    on_lost: Callable[[str, bool], None] | None = None
    late: bool = False

    def run(self, plan: Plan, timeout_s: float) -> None:
        """Runs a plan once.

        Raises:
            DeviceLostError: the device was lost, or did not finish in time.
        """
        started = time.monotonic()
        limit = max(LEAST_S, min(timeout_s, self.until - started))
        try:
            plan.run(timeout_s=limit)
        except DeviceLostError as error:
            self.late = time.monotonic() - started >= limit
            if self.on_lost is not None:
                self.on_lost(str(error), self.late)
            raise
