"""Windows of uniform buffers: a large buffer, read by loads that are made for small ones.

A uniform buffer is short, often 64 KiB, so that a large one is seen through an array of them. The
windows overlap by half: whatever is no longer than a step lies whole in the window in whose first
half it begins, and a kernel finds that window by a shift.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES: Final = 1 << 16
"""Of a window; the last ones end with the buffer. Devices whose uniform buffers are shorter are
taken to have no windows."""
WINDOW_STEP: Final = 1 << 15
"""From the start of one window to that of the next."""
MOST_WINDOWS: Final = 1 << 16
"""Of one buffer."""
ROOMS: Final = (1 << 6, 1 << 9, 1 << 12, MOST_WINDOWS)
"""How many windows a pipeline may be made for: some drivers keep memory for all of them in each
descriptor set, however few it has."""
MOST_BUFFERS: Final = 4
"""Of one kernel: as many descriptor sets as every device binds."""


def count_windows(nbytes: int) -> int:
    """How many windows a buffer has."""
    return -(-nbytes // WINDOW_STEP)


def windows(nbytes: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """First byte, and bytes, of each window of a buffer."""
    starts = np.arange(0, nbytes, WINDOW_STEP, dtype=np.uint64)
    return starts, np.minimum(np.uint64(nbytes) - starts, np.uint64(WINDOW_BYTES))
