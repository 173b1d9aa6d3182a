"""A small random model of every version, for tests that hold all of them to the same."""

from functools import partial

from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import (
    random_rosa_counting,
    random_rosa_lm,
    random_rwkv7_rosa,
    random_rwkv7a,
    random_rwkv8,
)
from tests.models.older_checkpoints import OLDER, random_older

VERSIONS = {
    **{version: partial(random_older, version=version) for version in OLDER},
    "rwkv7": random_rwkv7,
    "rwkv7a": random_rwkv7a,
    "rwkv8-rc00": random_rwkv8,
    "rwkv7-rosa": partial(random_rwkv7_rosa, vocab=96),
    **{f"rosa-lm-{bits}bit": partial(random_rosa_lm, bits=bits) for bits in (1, 4)},
    **{
        f"rosa-counting-{bits}bit": partial(random_rosa_counting, bits=bits, vocab=96)
        for bits in (1, 4)
    },
}
"""`config.version` -> what writes a model to a path, with any number of `layers`."""
