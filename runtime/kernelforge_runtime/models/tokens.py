"""Token ids are checked before they reach a device that would read out of bounds."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError


def check_tokens(tokens: Sequence[int] | NDArray[Any], vocab: int) -> NDArray[np.uint32]:
    """The ids as uint32 [T].

    Raises:
        ModelError: there are none, or one is not in 0 to vocab - 1.
    """
    try:
        count, ids = len(tokens), np.asarray(tokens)
    except (TypeError, ValueError):  # no length: a number or a generator; lists of unlike length
        raise ModelError(
            f"tokens must be whole numbers in one list: {reprlib.repr(tokens)} is no list of token "
            "ids"
        ) from None
    if count == 0:
        raise ModelError("no tokens to run: give at least one")
    if ids.dtype == object and ids.ndim == 1:
        for where, token in enumerate(tokens):
            if type(token) is int and token.bit_length() > 64:
                raise ModelError(
                    f"the token at position {where} has {token.bit_length()} bits: this model's "
                    f"ids are 0 to {vocab - 1}"
                )
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ModelError(f"tokens must be whole numbers in one list, found {ids.dtype} {ids.shape}")
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        where = int(np.argmax(outside))
        raise ModelError(
            f"token {int(ids[where])} at position {where}: this model's ids are 0 to {vocab - 1}"
        )
    return ids.astype(np.uint32)
