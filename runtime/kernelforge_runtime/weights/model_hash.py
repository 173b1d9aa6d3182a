"""Tells models apart: a digest of what a file holds, of samples so that it costs next to nothing.

Of every tensor, by the order of names: name, format, shape, and the stored bytes of its rows; where
a tensor is larger than 64 KiB, of as many rows as fill them, evenly spread, first and last among
them. So `.pth` and `.safetensors` of the same tensors have one digest, in whatever order they hold
them; any training changes it, and so do adapters: a model with adapters has the digest of the file
that they would be merged into. A single weight changed by hand in a large matrix may go unseen.

A converted file names in its metadata the digest of the file that it comes from, and its own: what
was trained on from it may have kept the metadata, and is no conversion any more.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.model_identity import DIGEST_BYTES, ModelHash, is_hash
from kernelforge_runtime.weights.checkpoint import Checkpoint

SAMPLE_BYTES = 1 << 16
"""Of a tensor."""
ORIGIN_KEY: Final = "kernelforge.converted_from"
OWN_KEY: Final = "kernelforge.converted_to"
"""Metadata: without its own digest, which vouches for the other, a file has no origin."""
_PLAIN: Final = re.compile(r"[A-Za-z0-9._]*")


def model_hash(checkpoint: Checkpoint) -> ModelHash:
    """32 hex digits, with the model's architecture and origin."""
    digest, shapes = (hashlib.blake2b(digest_size=DIGEST_BYTES) for _ in range(2))
    for name in sorted(checkpoint):
        shape = checkpoint.shape(name)
        about = _text(name, checkpoint.dtype(name), [*shape])
        digest.update(len(about).to_bytes(4, "little") + about)
        shapes.update(_text(name, [*shape]))
        if not math.prod(shape):
            continue
        for piece in checkpoint.stored_rows(name, _sampled(checkpoint, name, shape)):
            digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
    own, origin = digest.hexdigest(), checkpoint.metadata.get(ORIGIN_KEY)
    vouched = checkpoint.metadata.get(OWN_KEY) == own and is_hash(origin)
    return ModelHash(own, shapes.hexdigest(), origin if vouched else None)


def _sampled(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.intp]:
    rows = math.prod(shape[:-1])
    return _spread(rows, max(2, SAMPLE_BYTES * rows // checkpoint.nbytes(name)))


@lru_cache(maxsize=64)
def _spread(rows: int, wanted: int) -> NDArray[np.intp]:
    """So many rows, evenly spread, or all there are; a model's tensors have few shapes."""
    if wanted >= rows:
        return np.arange(rows)
    return np.linspace(0, rows - 1, wanted).astype(np.intp)


def _text(*items: Any) -> bytes:
    """A list as JSON; `items` are texts and one list of numbers."""
    plain = all(_PLAIN.fullmatch(item) for item in items[:-1])
    quoted = (f'"{item}", ' for item in items[:-1])
    return ("[" + "".join(quoted) + f"{items[-1]}]" if plain else json.dumps([*items])).encode()
