"""Observers of a run: hidden states by layer, and how large values are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops.observation import EMBEDDING, EMBEDDING_PART, Place


class Hidden:
    """Keeps the residual stream behind layers, of every token of a run.

    `model.forward(tokens, hidden=(found := Hidden([0, -1])))`, then `found[-1]` is [T, C] in
    float32: the output of the last layer, before the norm of the head. A later run replaces it.
    """

    def __init__(self, layers: Iterable[int] | None = None, embedding: bool = False) -> None:
        """What to keep.

        Args:
            layers: numbers from 0, negative ones from the end; every layer where None.
            embedding: also the embedding's rows, as `forward(vectors=...)` takes them.
        """
        if layers is not None and not isinstance(layers, Iterable):
            raise ModelError(f"hidden state of {layers!r}: name layers in a list, such as [0, -1]")
        self._asked = None if layers is None else [_whole(layer) for layer in layers]
        self._embedding = embedding
        self._count = 0
        self._wanted: set[int] = set()
        self._pieces: dict[int, list[NDArray[np.float32]]] = {}

    def begin(self, layers: int, version: str) -> None:
        """Forgets an earlier run; see Observer."""
        asked = range(layers) if self._asked is None else self._asked
        for layer in asked:
            if not -layers <= layer < layers:
                raise ModelError(
                    f"hidden state of layer {layer}: this {version} has layers 0 to {layers - 1}"
                )
        self._count, self._wanted = layers, {layer % layers for layer in asked}
        if self._embedding:
            self._wanted.add(EMBEDDING)
        self._pieces = {layer: [] for layer in sorted(self._wanted)}

    def wants(self, place: Place) -> bool:
        """The ends of blocks asked for, and the embedding."""
        ends = place.part == EMBEDDING_PART if place.block == EMBEDDING else place.ends_block
        return place.block in self._wanted and ends

    def see(self, place: Place, values: NDArray[np.float32]) -> None:
        """Keeps it."""
        self._pieces[place.block].append(values)

    @property
    def layers(self) -> list[int]:
        """Which there are, in order."""
        return [layer for layer in self._pieces if layer != EMBEDDING]

    @property
    def embedding(self) -> NDArray[np.float32]:
        """The embedding's rows, float32 [T, C]."""
        return self._kept(EMBEDDING, "the embedding", "embedding=True")

    def __getitem__(self, layer: int) -> NDArray[np.float32]:
        """The output of a layer, float32 [T, C].

        Raises:
            ModelError: it was not asked for, or nothing has run.
        """
        at = layer + self._count if layer < 0 else layer
        return self._kept(at if at >= 0 else self._count, f"layer {layer}", f"Hidden([{layer}])")

    def _kept(self, at: int, name: str, ask: str) -> NDArray[np.float32]:
        pieces = self._pieces.get(at)
        if not pieces:
            raise ModelError(f"hidden state of {name}: it was not kept; ask with {ask}, then run")
        if len(pieces) > 1:
            pieces[:] = [np.concatenate(pieces)]
        return pieces[0]


@dataclass
class Magnitude:
    """How large values are at a place.

    Attributes:
        place: where.
        largest: absolute value in the residual stream; of finite values alone.
        added: largest absolute value that the part added to the stream.
        damaged: values that are NaN or infinite.
        token: the first with such a value; -1 where there is none.
    """

    place: Place
    largest: float = 0.0
    added: float = 0.0
    damaged: int = 0
    token: int = -1


class Magnitudes:
    """Measures the residual stream behind every part of every layer; keeps no stream."""

    def __init__(self) -> None:
        self._found: dict[Place, Magnitude] = {}
        self._tokens: dict[Place, int] = {}
        self._before: NDArray[np.float32] | None = None

    def begin(self, layers: int, version: str) -> None:
        """Forgets an earlier run; see Observer."""
        self._found, self._tokens, self._before = {}, {}, None

    def wants(self, place: Place) -> bool:
        """Everything."""
        return True

    def see(self, place: Place, values: NDArray[np.float32]) -> None:
        """Measures it."""
        kept = self._found.setdefault(place, Magnitude(place))
        seen = self._tokens.get(place, 0)
        self._tokens[place] = seen + len(values)
        finite = np.isfinite(values)
        if not finite.all():
            kept.damaged += int((~finite).sum())
            if kept.token < 0:
                kept.token = seen + int(np.argmax(~finite.all(1)))
        kept.largest = max(kept.largest, _largest(values))
        if place.block != EMBEDDING and self._before is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                kept.added = max(kept.added, _largest(values - self._before))
        self._before = values

    @property
    def found(self) -> list[Magnitude]:
        """Every place, in the order of the model."""
        return list(self._found.values())

    @property
    def first_damage(self) -> Magnitude | None:
        """The first place with a value that is not finite."""
        return next((kept for kept in self._found.values() if kept.damaged), None)


def _largest(values: NDArray[np.float32]) -> float:
    size = np.abs(values)
    return float(np.max(size, initial=0.0, where=np.isfinite(size)))


def _whole(layer: object) -> int:
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise ModelError(f"hidden state of layer {layer!r}: layers are whole numbers")
    return int(layer)
