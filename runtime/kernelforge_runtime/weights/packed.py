"""Quantised matrices in a safetensors file: words under the matrix' name, scales behind `.scale`.

The file's metadata names the format: `kernelforge.quantized` is q8, nf4, or `nf4,q8` where it has
both; which of them a matrix is in its words and scales tell, of which there are 16 to 1 or 8 to 1.
Both tensors are u32 and hold what `quantize.Quantized` does; whatever has no scales is stored as in
any other file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kernelforge_runtime.dtypes import DTYPES, QUANTIZED, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import K_MULTIPLE
from kernelforge_runtime.weights.entry import TensorEntry

METADATA_KEY: Final = "kernelforge.quantized"
SCALE: Final = ".scale"
"""What follows a matrix' name in the name of its scales."""


@dataclass(frozen=True)
class PackedEntry:
    """Where a quantised matrix lies in its file."""

    format: DType
    weight: TensorEntry
    scale: TensorEntry

    @property
    def matrix(self) -> TensorEntry:
        """The matrix that they stand for, by format and shape; no place of its own."""
        rows, words = self.weight.shape
        shape = (rows, words * 32 // self.format.bits)
        return replace(self.weight, dtype=self.format.name, shape=shape)


def pair_scales(
    entries: Mapping[str, TensorEntry], metadata: Mapping[str, str], where: str
) -> tuple[dict[str, TensorEntry], dict[str, PackedEntry]]:
    """A file's tensors with every matrix that has scales under its own name alone, and its places.

    Raises:
        ModelError: the format is not known, or scales do not fit their matrix.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return dict(entries), {}
    forms = [DTYPES[name] for name in text.split(",") if DTYPES.get(name) in QUANTIZED]
    named = [form.name for form in forms]
    if not named or ",".join(named) != text or len({*named}) < len(named):
        known = ", ".join(sorted(d.name for d in QUANTIZED))
        raise ModelError(f"{where}: its weights are quantised as {text[:40]!r}, known are {known}")
    packed = {
        matrix: _fitting(matrix, forms, entries[matrix], entries[matrix + SCALE], where)
        for matrix in entries
        if matrix + SCALE in entries
    }
    scales = {matrix + SCALE for matrix in packed}
    left = {n: packed[n].matrix if n in packed else e for n, e in entries.items()}
    return {n: e for n, e in left.items() if n not in scales}, packed


def _fitting(
    name: str, forms: Sequence[DType], weight: TensorEntry, scale: TensorEntry, where: str
) -> PackedEntry:
    """The matrix in the one of the formats that its scales are right for."""
    if weight.dtype == scale.dtype == "u32" and len(weight.shape) == len(scale.shape) == 2:
        for form in forms:
            entry = PackedEntry(form, weight, scale)
            rows, k = entry.matrix.shape
            if k > 0 and scale.shape == (rows, k // K_MULTIPLE) and k % K_MULTIPLE == 0:
                return entry
    raise ModelError(
        f"{where}: {name} of shape {list(weight.shape)} {weight.dtype} has scales of shape "
        f"{list(scale.shape)} {scale.dtype}, which do not fit "
        f"{' or '.join(form.name for form in forms)}: damaged"
    )
