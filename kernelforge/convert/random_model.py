"""Files of a released shape with random weights, for benches of sizes one has no file of.

Speed does not depend on the weights' values, as long as they stay finite. They say nothing: what
such a model writes is noise.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.recipes import tensors
from kernelforge.convert.shapes import parse_shape
from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.dtypes import float_to_bf16

FORM = 1
"""Raised whenever the same shape and seed would give other bytes: part of the file's path."""

_PIECE = 1 << 22


def random_model(shape: str, folder: Path, seed: int = 0) -> Path:
    """The file of a random model in bf16; an existing one is used again.

    Args:
        shape: see `parse_shape`.
        folder: where such files are kept; made if need be.
        seed: of the weights; the same shape and seed give the same bytes.

    Raises:
        ConvertError: no such shape, or the file cannot be written.
    """
    recipe = tensors(parse_shape(shape))
    name = f"random-{shape.lower()}" + (f"-seed{seed}" if seed else "")
    path = folder / f"form{FORM}" / f"{name}.safetensors"
    plans = [TensorPlan(name, "bf16", dims) for name, (dims, _, _) in recipe.items()]
    wanted = sum(plan.nbytes for plan in plans)
    try:
        if path.is_file() and path.stat().st_size > wanted:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvertError(
            f"{path}: {error.strerror or error}; name another cache folder in KERNELFORGE_CACHE"
        ) from None

    def pieces(name: str) -> Iterator[NDArray[Any]]:
        dims, middle, deviation = recipe[name]
        # A generator per tensor, so that no tensor's values depend on the order of writing.
        rng = np.random.default_rng([seed, FORM, zlib.crc32(name.encode())])
        left = math.prod(dims)
        while left:
            count = min(left, _PIECE)
            values = rng.standard_normal(count, np.float32)
            yield float_to_bf16(values * np.float32(deviation) + np.float32(middle))
            left -= count

    write_safetensors(path, plans, pieces)
    return path
