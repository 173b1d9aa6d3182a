"""What no tensor says: read from the file's metadata, or its name.

`kernelforge convert` writes such metadata into a .safetensors file.
"""

from __future__ import annotations

import math
import re

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights import Checkpoint

GROUP_NORM_EPS = 64e-5
"""1e-5 times the square of the head size divisor that all released models were trained with, 8."""


def group_norm_eps(checkpoint: Checkpoint) -> float:
    """Metadata `group_norm_eps`, or what all released checkpoints have.

    Raises:
        ModelError: the metadata holds no small positive number.
    """
    text = checkpoint.metadata.get("group_norm_eps")
    if text is None:
        return GROUP_NORM_EPS
    try:
        eps = float(text)
    except ValueError:
        eps = math.nan
    if not 0 < eps < 1:
        raise ModelError(
            f"{checkpoint.path}: metadata group_norm_eps={text!r}: expected a number like 64e-5"
        )
    return eps


def rosa_bits(checkpoint: Checkpoint) -> int:
    """Bits of a ROSA symbol, 1 or 4: metadata `rosa_bits`, or `1bit` or `4bit` in the file's name.

    Models of both kinds have the same tensors.

    Raises:
        ModelError: neither says.
    """
    text = checkpoint.metadata.get("rosa_bits")
    if text is None:
        named = re.findall(r"(?<!\d)([14])-?bit", checkpoint.path.name.lower())
        text = named[0] if len(set(named)) == 1 else ""
    if text not in ("1", "4"):
        raise ModelError(
            f"{checkpoint.path}: the tensors do not say whether ROSA symbols have 1 bit or 4; "
            "name the file ...1bit... or ...4bit..., or use kernelforge convert --rosa-bits"
        )
    return int(text)
