"""Prompts in which vectors stand among the tokens, in place of rows of the embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelforge_runtime.engine.admission import check_length, check_prompt
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.models import Model, Reference
from kernelforge_runtime.models.inputs import Inputs, check_inputs


def holds_vectors(prompt: Any) -> bool:
    """Whether a prompt is an array of vectors, or a list that holds arrays."""
    if isinstance(prompt, np.ndarray):
        return prompt.ndim > 1 or prompt.dtype.kind == "f"
    if not isinstance(prompt, (list, tuple)):
        return False
    kinds = set(map(type, prompt))  # of a long list of ids this is all there is to look at
    return any(issubclass(kind, np.ndarray) for kind in kinds) and any(map(_is_array, prompt))


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.ndim > 0


def check_mixture(prompt: Any, model: Model | Reference, longest: int) -> Inputs:
    """A prompt in which vectors may stand between tokens, copied.

    Args:
        prompt: vectors [T, C], or a list of token ids, lists of ids, and vectors [C] or [T, C].
        model: that is to run it.
        longest: tokens and vectors that it may have together.

    Raises:
        ModelError: a part is neither, has another width, or is not finite.
    """
    check_length(len(prompt), longest)
    parts = [prompt] if isinstance(prompt, np.ndarray) else list(prompt)
    found: list[Inputs] = []
    ids: list[Any] = []
    total = 0

    def take_ids() -> None:
        if ids:
            found.append(Inputs(check_prompt(ids, model.config.vocab, None, "", longest)))
            ids.clear()

    for number, part in enumerate(parts):
        if not isinstance(part, (list, tuple)) and not _is_array(part):
            ids.append(part)
            total += 1
            check_length(total, longest)
            continue
        take_ids()
        try:
            made = _part(part, model, longest)
        except ModelError as error:
            raise ModelError(f"part {number} of the prompt: {error}") from None
        total += len(made)
        check_length(total, longest)
        found.append(made)
    take_ids()
    # Joined, they are copied: the caller may change its own.
    rows = [piece.rows for piece in found if piece.rows is not None]
    ids_of_all = np.concatenate([piece.ids for piece in found])
    return Inputs(ids_of_all, np.concatenate(rows) if rows else None)


def _part(part: Any, model: Model | Reference, longest: int) -> Inputs:
    try:
        check_length(len(part), longest)
        if len(part) == 0:
            raise ModelError("it is empty: give at least one token or vector")
        given = np.asarray(part)
    except (TypeError, ValueError) as error:
        raise ModelError(f"it is neither token ids nor vectors: {error}") from None
    if given.ndim == 1 and given.dtype.kind in "iub":
        return Inputs(check_prompt(part, model.config.vocab, None, "", longest))
    rows = given[None] if given.ndim == 1 else given
    return check_inputs((), rows, model.config, model.activations)
