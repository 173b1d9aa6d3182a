"""Weight formats by the names that users write."""

from __future__ import annotations

from kernelforge_runtime.dtypes import BF16, F16, F32, DType
from kernelforge_runtime.errors import ModelError

WEIGHT_FORMATS: dict[str, DType] = {d.name: d for d in (F32, BF16, F16)}


def weight_format(name: str) -> DType:
    """The format of this name.

    Raises:
        ModelError: there is none.
    """
    if name not in WEIGHT_FORMATS:
        raise ModelError(f"weight format {name!r}: there are {', '.join(WEIGHT_FORMATS)}")
    return WEIGHT_FORMATS[name]
