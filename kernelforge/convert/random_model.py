"""RWKV-7 files of a released shape with random weights, for benches of sizes one has no file of.

Speed does not depend on the weights' values, as long as they stay finite. They say nothing: what
such a model writes is noise.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.convert.writer import TensorPlan, write_safetensors
from kernelforge.errors import ConvertError
from kernelforge_runtime.dtypes import float_to_bf16

HEAD_SIZE = 64
FORM = 1
"""Raised whenever the same shape and seed would give other bytes: part of the file's path."""

_CUSTOM = re.compile(r"L(\d+)\.C(\d+)\.V(\d+)")
_PIECE = 1 << 22
_MOST_PARAMETERS = 20e9


@dataclass(frozen=True)
class ModelShape:
    """Sizes of an RWKV-7 model.

    Attributes:
        layers: L.
        width: C, a multiple of the head size.
        vocab: V.
        lora: widths of the low-rank matrices of w, a, v and g.
    """

    layers: int
    width: int
    vocab: int = 65536
    lora: tuple[int, int, int, int] = (64, 64, 32, 128)


SHAPES = {
    "v7-0.1b": ModelShape(12, 768),
    "v7-0.4b": ModelShape(24, 1024),
    "v7-1.5b": ModelShape(24, 2048, lora=(96, 96, 64, 256)),
    "v7-2.9b": ModelShape(32, 2560, lora=(96, 96, 64, 320)),
}
"""Shapes of the released World models."""


def parse_shape(text: str) -> ModelShape:
    """A shape by its name, or spelled out as `L12.C768.V65536`.

    Raises:
        ConvertError: no such shape.
    """
    if text.lower() in SHAPES:
        return SHAPES[text.lower()]
    match = _CUSTOM.fullmatch(text.upper())
    if match is None:
        raise ConvertError(
            f"--shape {text}: there are {', '.join(SHAPES)}; or write sizes like L12.C768.V65536"
        )
    layers, width, vocab = (int(group) for group in match.groups())
    if layers < 1 or vocab < 2 or width < HEAD_SIZE or width % HEAD_SIZE:
        raise ConvertError(
            f"--shape {text}: needs a layer, two tokens and a width in steps of {HEAD_SIZE}"
        )
    if layers * 12 * width * width + 2 * vocab * width > _MOST_PARAMETERS:
        raise ConvertError(
            f"--shape {text}: more than {_MOST_PARAMETERS / 1e9:.0f} billion weights"
        )
    rank = min(64, max(32, width // 8 // 32 * 32))
    return ModelShape(layers, width, vocab, (rank, rank, 32, 2 * rank))


def random_model(shape: str, folder: Path, seed: int = 0) -> Path:
    """The file of a random RWKV-7 in bf16; an existing one is used again.

    Args:
        shape: see `parse_shape`.
        folder: where such files are kept; made if need be.
        seed: of the weights; the same shape and seed give the same bytes.

    Raises:
        ConvertError: no such shape, or the file cannot be written.
    """
    sizes = parse_shape(shape)
    name = f"random-{shape.lower()}" + (f"-seed{seed}" if seed else "")
    path = folder / f"form{FORM}" / f"{name}.safetensors"
    tensors = _tensors(sizes)
    plans = [TensorPlan(name, "bf16", dims) for name, (dims, _, _) in tensors.items()]
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
        dims, middle, deviation = tensors[name]
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


Recipe = dict[str, tuple[tuple[int, ...], float, float]]


def _tensors(shape: ModelShape) -> Recipe:
    """Name -> (dimensions, mean, standard deviation) of every tensor.

    Scales are near those of a trained model: matrices keep the size of what they multiply, decays
    lie between a few and a few hundred tokens, and what is added to the residual stays small.
    """
    layers, width, vocab = shape.layers, shape.width, shape.vocab
    found: Recipe = {
        "emb.weight": ((vocab, width), 0.0, 0.5),
        "head.weight": ((vocab, width), 0.0, 1.0 / math.sqrt(width)),
    }
    for name in ("blocks.0.ln0", "ln_out"):
        found |= _norm(name, width)
    for layer in range(layers):
        block = f"blocks.{layer}."
        for name in ("ln1", "ln2"):
            found |= _norm(block + name, width)
        found |= {block + name: recipe for name, recipe in _mixing(shape, layer).items()}
    return found


def _norm(name: str, width: int) -> Recipe:
    return {f"{name}.weight": ((width,), 1.0, 0.02), f"{name}.bias": ((width,), 0.0, 0.02)}


def _mixing(shape: ModelShape, layer: int) -> Recipe:
    """Time mix and channel mix of one block."""
    width, hidden = shape.width, 4 * shape.width
    row = (1, 1, width)
    keep = 1.0 / math.sqrt(width)
    add = keep / math.sqrt(2.0 * shape.layers)
    found: Recipe = {f"att.x_{letter}": (row, 0.5, 0.2) for letter in "rwkvag"}
    middles = {"w": (-3.0, 1.5), "a": (0.0, 0.5), "v": (0.5, 0.5)}
    for letter, rank in zip("wavg", shape.lora, strict=True):
        if letter == "v" and layer == 0:
            continue  # the first layer's values are the residual themselves
        found[f"att.{letter}1"] = ((width, rank), 0.0, keep)
        found[f"att.{letter}2"] = ((rank, width), 0.0, 0.5 / math.sqrt(rank))
        if letter in middles:
            found[f"att.{letter}0"] = (row, *middles[letter])
    found |= {
        "att.k_k": (row, 0.85, 0.05),
        "att.k_a": (row, 1.0, 0.05),
        "att.r_k": ((width // HEAD_SIZE, HEAD_SIZE), 0.0, 0.1),
        "att.receptance.weight": ((width, width), 0.0, keep),
        "att.key.weight": ((width, width), 0.0, keep),
        "att.value.weight": ((width, width), 0.0, keep),
        "att.output.weight": ((width, width), 0.0, add),
        "ffn.x_k": (row, 0.5, 0.2),
        "ffn.key.weight": ((hidden, width), 0.0, keep),
        "ffn.value.weight": ((width, hidden), 0.0, 0.5 * add),
    }
    return found | _norm("att.ln_x", width)
