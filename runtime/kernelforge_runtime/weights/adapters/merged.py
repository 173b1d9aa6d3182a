"""A checkpoint with adapters merged into it, a tensor at a time, when it is asked for.

A tensor is merged in float64, all its adapters in their order, some rows at a time, and rounded
once: to float32, or where the file has it in f16 or bf16 so that it gives, in that format, what
float64 itself gives. The model is never held twice, nor is any tensor of it in float64.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import BF16, DTYPES, F16, F32, DType, decode, encode
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import Quantized, dequantize, quantize
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.stored_words import StoredWords
from kernelforge_runtime.weights.adapters.asked import Adapter, as_adapters
from kernelforge_runtime.weights.adapters.change import Apply, Change, Held, Rows
from kernelforge_runtime.weights.adapters.recognise import changes, pair_pissa, read_parts
from kernelforge_runtime.weights.checkpoint import Checkpoint, open_checkpoint
from kernelforge_runtime.weights.lazy_rows import LazyRows

log = logging.getLogger(__name__)
_PIECE_ELEMENTS = 1 << 19
"""Of a tensor in float64 at once: 4 MB."""


def open_model(
    path: str | os.PathLike[str],
    adapters: Iterable[Adapter | str | os.PathLike[str]] = (),
) -> Checkpoint:
    """Opens a model file, with adapters merged into it.

    Args:
        path: a `.pth` or `.safetensors` file.
        adapters: in the order in which they are added; text is read as FILE[:ALPHA[:REGEX]].

    Raises:
        ModelError: a file cannot be read, or an adapter is not one of this model.
    """
    asked = as_adapters(adapters)
    base = open_checkpoint(path)
    if not asked:
        return base
    with ExitStack() as opened:
        opened.callback(base.close)
        files = []
        for adapter in asked:
            try:
                files.append(open_checkpoint(adapter.path))
            except ModelError as error:
                raise ModelError(f"adapter {error}") from None
            opened.callback(files[-1].close)
        parts = [read_parts(a, file) for a, file in zip(asked, files, strict=True)]
        made: dict[str, list[Change]] = {}
        added: dict[str, Held] = {}
        for one in pair_pissa(parts):
            found, states = changes(one, base)
            for name, more in found.items():
                made.setdefault(name, []).extend(more)
            added |= states
            log.info("adapter %s: changes %d tensors", one.adapter, len(found) + len(states))
        merged = MergedCheckpoint(base, files, made, added)
        opened.pop_all()
    return merged


class MergedCheckpoint(Checkpoint):
    """A model file as it would be with adapters merged into it; it owns all the files."""

    def __init__(
        self,
        base: Checkpoint,
        files: Sequence[Checkpoint],
        made: Mapping[str, Sequence[Change]],
        added: Mapping[str, Held],
    ) -> None:
        if base._data is None:
            raise ModelError(f"{base.path}: adapters were merged into it after it was closed")
        entries = {name: held.checkpoint._entry(held.name) for name, held in added.items()}
        super().__init__(
            base.path,
            base.kind,
            base._data,
            {**base._entries, **entries},
            base.metadata,
            base._packed,
        )
        self._base, self._files, self._added = base, tuple(files), dict(added)
        self._changes = MappingProxyType({name: tuple(each) for name, each in made.items()})

    @property
    def changed(self) -> Collection[str]:
        """Names of the tensors that are not as the file has them."""
        return self._changes.keys()

    def tensor(self, name: str) -> NDArray[np.float32]:
        """As of any checkpoint, merged.

        Raises:
            ModelError: what comes out is not finite.
        """
        if name in self._added:
            return self._added[name].read().astype(np.float32)
        values = self._base.tensor(name)
        if name not in self._changes or not values.size:
            return values
        applies, form = self._prepared(name), self._format(name)
        rows = values.reshape(-1, values.shape[-1])
        step = max(1, _PIECE_ELEMENTS // rows.shape[1])
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            numbers = np.arange(start, start + len(piece))
            piece[...] = self._merge(name, applies, piece, numbers, form)
        return values

    def raw(self, name: str) -> NDArray[Any]:
        """As of any checkpoint, but merged tensors are new arrays.

        Raises:
            ModelError: what comes out does not fit the file's format.
        """
        if name in self._added:
            held = self._added[name]
            found = held.checkpoint.raw(held.name)
            return found.swapaxes(-1, -2) if held.transposed else found
        if name not in self._changes:
            return self._base.raw(name)
        found_words = self.quantized(name)
        if found_words is not None:
            return found_words.weight
        return self._stored(name, self.tensor(name))

    def quantized(self, name: str) -> Quantized | None:
        """As of any checkpoint; a merged matrix is quantised anew."""
        if name not in self._changes or name not in self._packed:
            return None if name in self._added else self._base.quantized(name)
        return quantize(self.tensor(name), self._packed[name].format, name)

    def stored_rows(self, name: str, rows: NDArray[np.intp]) -> list[NDArray[Any]]:
        """As of any checkpoint, merged: other rows are not touched."""
        if name in self._added:
            raw = self.raw(name)
            return [raw.reshape(-1, raw.shape[-1])[rows]]
        found = self._base.stored_rows(name, rows)
        if name not in self._changes:
            return found
        packed = self._packed.get(name)
        if packed is not None:
            old = dequantize(Quantized(found[0], found[1]), packed.format)
            new = quantize(self._merge(name, self._prepared(name), old, rows, F32), packed.format)
            return [new.weight, new.scale]
        form = self._format(name)
        old = decode(found[0], form)
        return [self._stored(name, self._merge(name, self._prepared(name), old, rows, form))]

    def stored(self, name: str, shape: tuple[int, ...]) -> StoredMatrix | StoredWords | None:
        """As of any checkpoint; None of merged tensors."""
        if name in self._changes or name in self._added:
            return None
        return self._base.stored(name, shape)

    def lazy_rows(self, name: str) -> LazyRows:
        """As of any checkpoint; rows are merged when they are asked for."""
        plain = self._base.lazy_rows(name)
        if name not in self._changes:
            return plain
        applies, form = self._prepared(name), self._format(name)
        return MergedRows(plain, lambda old, ids: self._merge(name, applies, old, ids, form))

    def close(self) -> None:
        """Lets go of all the files."""
        super().close()
        for file in (self._base, *self._files):
            file.close()

    def _prepared(self, name: str) -> list[Apply]:
        return [change.prepare() for change in self._changes[name]]

    def _format(self, name: str) -> DType:
        """The format that rounding must not be seen in."""
        form = DTYPES.get(self.dtype(name))
        return form if form in (F16, BF16) else F32

    def _merge(
        self,
        name: str,
        applies: Sequence[Apply],
        old: NDArray[np.float32],
        rows: NDArray[Any],
        form: DType,
    ) -> NDArray[np.float32]:
        found: Rows = old.astype(np.float64)
        for apply in applies:
            found = apply(found, rows)
        merged = rounded(found, form)
        if not np.isfinite(merged).all():
            raise ModelError(
                f"{self.path}: with its adapters {name} is not finite: alpha is too large, or an "
                "adapter is damaged"
            )
        return merged

    def _stored(self, name: str, values: NDArray[np.float32]) -> NDArray[Any]:
        form = DTYPES[self.dtype(name)]
        with np.errstate(over="ignore"):
            found = encode(values, form)
        if form == F16 and not np.isfinite(found).all():
            raise ModelError(
                f"{self.path}: with its adapters {name} is too large for f16: use bf16 or f32"
            )
        return found


class MergedRows(LazyRows):
    """Rows of a table that stays in its file, merged when they are asked for."""

    def __init__(self, plain: LazyRows, merge: Any) -> None:
        super().__init__(plain._stored, plain.dtype)
        self._merge = merge

    def rows(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """These rows in float32, [len(ids), columns]."""
        found: NDArray[np.float32] = self._merge(super().rows(ids), np.asarray(ids, np.intp))
        return found


def rounded(values: Rows, form: DType) -> NDArray[np.float32]:
    """Float32, so that rounding it on to `form` gives what rounding float64 at once gives.

    That differs from the nearest float32 only where that lies half-way between two values of the
    format, but float64 did not: there it is moved by its last bit, towards the float64 value.
    """
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
        if form == F32:
            return near
        if form == F16:
            wrong = near.astype(np.float16) != values.astype(np.float16)
        else:
            wrong = (near.view(np.uint32) & 0xFFFF) == 0x8000
        wrong &= (near != values) & np.isfinite(near)
        if wrong.any():
            towards = np.where(values[wrong] > near[wrong], np.inf, -np.inf).astype(np.float32)
            near[wrong] = np.nextafter(near[wrong], towards)
    return near
