"""How many tokens of which slot go into a step."""

from __future__ import annotations

from collections.abc import Sequence

from kernelforge_runtime.models.step_size import share


def pack(left: Sequence[int], chunk: int) -> list[int]:
    """Tokens of each slot, at least one each.

    Who has one token left, as in decode, runs in every step; the rest of the step is shared among
    the prompts, so that neither a long prompt nor many short ones hold anybody up.

    Args:
        left: tokens that each slot has yet to run, 1 or more.
        chunk: tokens of the step, at least as many as there are slots.
    """
    prompts = {i: n for i, n in enumerate(left) if n > 1}
    parts = share(chunk - (len(left) - len(prompts)), prompts)
    return [parts.get(i, 1) for i in range(len(left))]
