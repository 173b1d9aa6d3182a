"""How a prefix cache spells a prompt: tokens as they are, and vectors by what they hold.

A vector is spelled with 31 bits of a digest of it and of all the vectors before it, keyed anew for
every cache, so that nobody can make two that look alike. As 31 bits may agree by chance, a state
that vectors led to is also kept with the whole digest, and taken only where that agrees too.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.models.inputs import Rows
from kernelforge_runtime.ops.given_rows import GIVEN

NUMBERED = 0x80000000
"""Set in what spells a vector; no token's id is so large."""
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Spelling:
    """A prompt in a cache's spelling.

    Attributes:
        tokens: uint32 [T].
        digests: uint8 [n, 16]: of each vector, and of all before it.
    """

    tokens: NDArray[np.uint32]
    digests: NDArray[np.uint8]

    def proof(self, count: int) -> bytes:
        """What the vectors among the first so many tokens are known by; empty for none."""
        if not len(self.digests):
            return b""
        vectors = int(np.count_nonzero(self.tokens[:count] >= NUMBERED))
        return self.digests[vectors - 1].tobytes() if vectors else b""


def spell(ids: NDArray[np.uint32], rows: Rows, key: bytes) -> Spelling:
    """A prompt's spelling.

    Args:
        ids: uint32 [T], GIVEN where a vector stands.
        rows: the vectors, float32 [n, C]; None where there are none.
        key: of the cache.
    """
    if rows is None:
        return Spelling(ids, np.empty((0, DIGEST_BYTES), np.uint8))
    digests = np.empty((len(rows), DIGEST_BYTES), np.uint8)
    so_far = b""
    for digest, row in zip(digests, rows, strict=True):
        so_far = blake2b(so_far + row.tobytes(), digest_size=DIGEST_BYTES, key=key).digest()
        digest[:] = np.frombuffer(so_far, np.uint8)
    tokens = ids.copy()
    tokens[ids == GIVEN] = digests[:, :4].copy().view(np.uint32)[:, 0] | np.uint32(NUMBERED)
    return Spelling(tokens, digests)
