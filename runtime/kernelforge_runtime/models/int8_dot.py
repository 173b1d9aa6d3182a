"""Int8 dot products as they are asked for, and what came of asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kernelforge_runtime.errors import ModelError

INT8_BOUND = 0.05
"""Of the logits' own spread. The demonstration model is off by 0.006."""


@dataclass(frozen=True)
class Int8Dot:
    """Products of q8 weights with inputs that are rounded to int8, in steps of up to 8 tokens.

    Attributes:
        use: "faster": where they were measured faster than exact ones; "always": wherever there is
            a kernel.
        bound: how far the logits of the trial run may be off, as a part of their own spread.
    """

    use: Literal["faster", "always"] = "faster"
    bound: float = INT8_BOUND

    def __post_init__(self) -> None:
        if self.use not in ("faster", "always"):
            raise ModelError(f"int8 dot products {self.use!r}: there are faster and always")
        if not self.bound > 0:
            raise ModelError(f"a bound of {self.bound} for int8 dot products: expected more than 0")


@dataclass(frozen=True)
class Int8Report:
    """What came of it.

    Attributes:
        products: of a decode step that round their inputs.
        of: all products of q8 weights in such a step.
        error: root mean square of what the logits were off, over that of their spread.
    """

    products: int
    of: int
    error: float

    def __str__(self) -> str:
        if not self.products:
            return f"int8 dot products: none of {self.of} was measured faster; all are exact"
        return (
            f"int8 dot products: {self.products} of {self.of} round their inputs; logits off by "
            f"{100 * self.error:.2g} % of their spread"
        )
