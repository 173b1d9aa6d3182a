"""Which tensors a version has, and of which shapes: declared once, checked against the file.

A table maps names to shapes, spelled with sizes: `"att.r_k": "H N"`. The first tensor that names a
size gives it its value; a later one that disagrees contradicts it. Axes of one are dropped where a
shape has more axes than its table entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.ops import TensorName, Weight
from kernelforge_runtime.weights import Checkpoint

Table = Mapping[str, str]
BLOCKS: Table = {"": "blocks.{i}."}
"""The usual spelling of a block's tensors."""
NAMED = 3
"""Tensors that a message names before it only counts."""


@dataclass(frozen=True)
class Schema:
    """The tensors of a version.

    Attributes:
        model: outside of blocks, by full name.
        block: in every block, by the name behind `blocks.0.`.
        later: in every block but the first, where they are ignored.
        optional: allowed and not needed, in every block.
        spelling: how names of a block's tensors begin in the file, by how they begin in the tables
            above; the first that fits. `{i}` is the block's number from 0, `{n}` from 1.
    """

    model: Table
    block: Table
    later: Table = field(default_factory=dict)
    optional: Table = field(default_factory=dict)
    spelling: Table = field(default_factory=lambda: BLOCKS)

    def spell(self, index: int, name: str) -> str:
        """The file's name of a block's tensor."""
        for begins, spelled in self.spelling.items():
            if name.startswith(begins):
                return spelled.format(i=index, n=index + 1) + name[len(begins) :]
        raise KeyError(name)

    def parse(self, full: str) -> tuple[int, str] | None:
        """The block and the name in the tables that a file's name stands for; None outside."""
        for begins, first, pattern in self._patterns:
            if found := pattern.fullmatch(full):
                return int(found[1]) - first, begins + found[2]
        return None

    @cached_property
    def _patterns(self) -> list[tuple[str, int, re.Pattern[str]]]:
        """Of every spelling: how names begin in the tables, the first block's number, the form."""
        found = []
        for begins, spelled in self.spelling.items():
            pattern = re.escape(spelled).replace(r"\{i\}", "(0|[1-9][0-9]{0,8})")
            pattern = pattern.replace(r"\{n\}", "([1-9][0-9]{0,8})")
            found.append((begins, int("{n}" in spelled), re.compile(pattern + "(.+)")))
        return found

    def read(self, checkpoint: Checkpoint) -> TensorReader:
        """Checks every name and shape of a file.

        Raises:
            ModelError: a tensor is missing, unknown, or contradicts another one's sizes.
        """
        blocks = {name: found for name in checkpoint.names if (found := self.parse(name))}
        layers = 1 + max((index for index, _ in blocks.values()), default=-1)
        if layers > len(checkpoint):
            raise ModelError(
                f"{checkpoint.path}: names block {layers - 1}, but holds {len(checkpoint)} tensors"
            )
        wanted = dict(self.model)
        for i in range(layers):
            wanted |= {self.spell(i, n): s for n, s in self.block.items()}
            if i:
                wanted |= {self.spell(i, n): s for n, s in self.later.items()}
        if missing := [name for name in wanted if name not in checkpoint]:
            raise ModelError(f"{checkpoint.path}: {_names(missing)} {_is(missing)} missing")
        for full, (_, name) in blocks.items():
            if name in self.optional:
                wanted[full] = self.optional[name]
        ignored = {self.spell(0, name) for name in self.later}
        unknown = [n for n in checkpoint.names if n not in wanted and n not in ignored]
        if unknown:
            raise ModelError(
                f"{checkpoint.path}: {_names(unknown)} {_is(unknown)} no tensor of this version"
            )
        sizes: dict[str, int] = {}
        origin: dict[str, str] = {}
        for name, shape in wanted.items():
            _unify(checkpoint, name, shape.split(), sizes, origin)
        known = {
            shape: tuple(int(t) if t.isdigit() else sizes[t] for t in shape.split())
            for shape in {*wanted.values()}
        }
        shapes = {name: known[shape] for name, shape in wanted.items()}
        return TensorReader(checkpoint, self, shapes, sizes, layers)


class TensorReader:
    """Tensors of a checked file by name, in float32.

    Attributes:
        checkpoint: the file.
        sizes: every size that the schema names.
        layers: number of blocks.
        index: the block whose tensors are asked for, by their names in the schema's tables; None:
            full names are asked for.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        schema: Schema,
        shapes: Mapping[str, tuple[int, ...]],
        sizes: Mapping[str, int],
        layers: int,
        index: int | None = None,
    ) -> None:
        self.checkpoint, self.sizes, self.layers, self.index = checkpoint, sizes, layers, index
        self._schema, self._shapes = schema, shapes

    def block(self, index: int) -> TensorReader:
        """The tensors of one block, by their names in the schema's tables."""
        return TensorReader(
            self.checkpoint, self._schema, self._shapes, self.sizes, self.layers, index
        )

    def name(self, name: str) -> TensorName:
        """The name in the file."""
        full = name if self.index is None else self._schema.spell(self.index, name)
        return TensorName(full, self.index)

    def __contains__(self, name: str) -> bool:
        return self.name(name) in self._shapes

    def __call__(self, name: str) -> NDArray[np.float32]:
        """The tensor in its schema's shape, float32.

        Raises:
            ModelError: it holds NaN or infinity.
        """
        full = self.name(name)
        values = self.checkpoint.tensor(full)
        if not _is_finite(values):
            raise ModelError(
                f"{self.checkpoint.path}: {full} holds NaN or infinite weights; "
                "the file is damaged or its training diverged"
            )
        return values.reshape(self._shapes[full])

    def matrix(self, name: str) -> Weight:
        """A matrix that an op set takes as it is: read when it is packed, where that is possible.

        Raises:
            ModelError: it holds NaN or infinity; where it is not read yet, that is found then.
        """
        full = self.name(name)
        stored = getattr(self.checkpoint, "stored", None)
        found: Weight | None = stored(full, self._shapes[full]) if stored is not None else None
        return self(name) if found is None else found

    @property
    def parameters(self) -> int:
        """Number of weights in the file."""
        return sum(math.prod(self.checkpoint.shape(n)) for n in self.checkpoint.names)


def _is_finite(values: NDArray[np.float32]) -> bool:
    """Along axes that repeat one value, as those of shapes without values do, one is looked at."""
    real = tuple(slice(None) if stride else slice(0, 1) for stride in values.strides)
    return bool(np.isfinite(values[real]).all())


def _unify(
    checkpoint: Checkpoint,
    name: str,
    terms: list[str],
    sizes: dict[str, int],
    origin: dict[str, str],
) -> None:
    stored = list(checkpoint.shape(name))
    found = list(stored)
    while len(found) > len(terms) and 1 in found:
        found.remove(1)  # the first: vectors are stored as [1, 1, C]
    known = [int(t) if t.isdigit() else sizes.get(t) for t in terms]
    fits = len(found) == len(terms) and all(
        size >= 1 and k in (None, size) for size, k in zip(found, known, strict=True)
    )
    if not fits:
        spelled = ", ".join(t if k is None else str(k) for t, k in zip(terms, known, strict=True))
        why = sorted({f"{t} is from {origin[t]}" for t in terms if t in origin})
        hint = f" ({'; '.join(why)})" if why else ""
        raise ModelError(
            f"{checkpoint.path}: {name} has shape {stored}, expected [{spelled}]{hint}"
        )
    for term, size in zip(terms, found, strict=True):
        if not term.isdigit() and term not in sizes:
            sizes[term], origin[term] = size, name


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
