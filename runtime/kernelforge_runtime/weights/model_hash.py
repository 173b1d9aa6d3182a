"""Tells models apart: a digest of what a file holds, of samples so that it costs next to nothing.

Of every tensor, by the order of names: name, format, shape, and the stored bytes of its rows; where
a tensor is larger than 64 KiB, of as many rows as fill them, evenly spread, first and last among
them. So `.pth` and `.safetensors` of the same tensors have one digest, in whatever order they hold
them; any training changes it, and so do adapters: a model with adapters has the digest of the file
that they would be merged into. A single weight changed by hand in a large matrix may go unseen.
"""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.weights.checkpoint import Checkpoint

SAMPLE_BYTES = 1 << 16
"""Of a tensor."""
DIGEST_BYTES = 16


def model_hash(checkpoint: Checkpoint) -> str:
    """32 hex digits."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(checkpoint):
        shape = checkpoint.shape(name)
        about = json.dumps([name, checkpoint.dtype(name), list(shape)])
        digest.update(len(about).to_bytes(4, "little") + about.encode())
        if not math.prod(shape):
            continue
        for piece in checkpoint.stored_rows(name, _sampled(checkpoint, name, shape)):
            digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
    return digest.hexdigest()


def _sampled(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.intp]:
    rows = math.prod(shape[:-1])
    wanted = max(2, SAMPLE_BYTES * rows // checkpoint.nbytes(name))
    if wanted >= rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, wanted).astype(np.intp)
