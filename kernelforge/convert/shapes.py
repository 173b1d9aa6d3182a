"""Sizes of released models, and of others spelled out, by the names that users write."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kernelforge.errors import ConvertError

HEAD_SIZE = 64

_CUSTOM = re.compile(r"(?:(v[4-7])\.)?l(\d{1,9})\.c(\d{1,9})\.v(\d{1,9})")
_MOST_PARAMETERS = 20e9


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        layers: L.
        width: C, a multiple of the head size.
        vocab: V.
        lora: widths of the low-rank matrices: of v7 those of w, a, v and g, of v6 those of the
            mixes and the decay.
        version: whose tensors it has.
    """

    layers: int
    width: int
    vocab: int = 65536
    lora: tuple[int, ...] = (64, 64, 32, 128)
    version: str = "v7"

    @property
    def hidden(self) -> int:
        """F, width of the channel mix."""
        if self.version in ("v5", "v6"):
            return int(3.5 * self.width) // 32 * 32
        return 4 * self.width


SHAPES = {
    "v4-0.1b": ModelShape(12, 768, lora=(), version="v4"),
    "v5-0.1b": ModelShape(12, 768, lora=(), version="v5"),
    "v6-0.1b": ModelShape(12, 768, lora=(32, 64), version="v6"),
    "v7-0.1b": ModelShape(12, 768),
    "v7-0.4b": ModelShape(24, 1024),
    "v7-1.5b": ModelShape(24, 2048, lora=(96, 96, 64, 256)),
    "v7-2.9b": ModelShape(32, 2560, lora=(96, 96, 64, 320)),
}
"""Shapes of World models. RWKV-6 was not released as small as this; its widths are the 1.6B's."""


def parse_shape(text: str) -> ModelShape:
    """A shape by its name, or spelled out as `L12.C768.V65536` or `v6.L12.C768.V65536`.

    Raises:
        ConvertError: no such shape.
    """
    if text.lower() in SHAPES:
        return SHAPES[text.lower()]
    match = _CUSTOM.fullmatch(text.lower())
    if match is None:
        raise ConvertError(
            f"--shape {text}: there are {', '.join(SHAPES)}; or write sizes like L12.C768.V65536 "
            "or v6.L12.C768.V65536"
        )
    version = match[1] or "v7"
    layers, width, vocab = (int(match[i]) for i in (2, 3, 4))
    if layers < 1 or vocab < 2 or width < HEAD_SIZE or width % HEAD_SIZE:
        raise ConvertError(
            f"--shape {text}: needs a layer, two tokens and a width in steps of {HEAD_SIZE}"
        )
    if layers * 12 * width * width + 2 * vocab * width > _MOST_PARAMETERS:
        raise ConvertError(
            f"--shape {text}: more than {_MOST_PARAMETERS / 1e9:.0f} billion weights"
        )
    return ModelShape(layers, width, vocab, _ranks(version, width), version)


def _ranks(version: str, width: int) -> tuple[int, ...]:
    rank = min(64, max(32, width // 8 // 32 * 32))
    return {"v6": (32, rank), "v7": (rank, rank, 32, 2 * rank)}.get(version, ())
