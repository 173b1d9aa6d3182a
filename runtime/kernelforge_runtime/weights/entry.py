"""Where one stored tensor lies in a file: what the format readers hand to `Checkpoint`."""

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

MAX_TENSORS: Final = 16_384
"""Most tensors a file may hold; the largest released model has about 2,500."""
MAX_DIMS: Final = 8
MAX_ELEMENTS: Final = 2**40
"""Most elements one tensor may claim, zero-sized dimensions counted as one."""


class Bytes(Protocol):
    """What the readers need of a file's content: slices of it (`mmap`, `bytes`)."""

    def __getitem__(self, index: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, already checked to lie inside its file.

    Attributes:
        dtype: "f32", "f16", "bf16", or an integer type's name such as "i8".
        stored: NumPy type of one element; bf16 is uint16.
        shape: dimensions, outermost first.
        strides: distance between neighbours along each dimension, in elements.
        offset: byte in the file where element 0 lies.
    """

    dtype: str
    stored: "np.dtype[Any]"
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous row-major tensor."""
    strides: list[int] = []
    step = 1
    for dim in reversed(shape):
        strides.append(step)
        step *= dim
    return tuple(reversed(strides))
