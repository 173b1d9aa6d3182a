"""Reads the tensors of a torch `.pth` file without torch and without running its pickle.

A `.pth` file is a zip archive: `<root>/data.pkl` names the tensors and describes each as a view
of a storage, `<root>/data/<key>` are the storages, raw little-endian elements. Legacy pickles
from before torch 1.6 are refused by `weights.checkpoint`.
"""

from __future__ import annotations

from typing import Any, Final

from kernelforge_runtime.dtypes import DTYPES
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.entry import (
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_TENSORS,
    Bytes,
    TensorEntry,
)
from kernelforge_runtime.weights.pickle_machine import PickleMachine, TensorRef
from kernelforge_runtime.weights.zip_directory import ZipDirectory

MAX_PICKLE_BYTES: Final = 16_000_000
_BASE_BUDGET_BYTES: Final = 12_000_000
"""Memory for a pickle's values, on top of half the file's size; the largest released model, of
2,500 tensors, takes 6 MB."""


def read_pth(data: Bytes, size: int, where: str) -> dict[str, TensorEntry]:
    """Tensors of a `.pth` file, in the order of its dictionary, each checked against its storage.

    Args:
        data: the whole file, sliceable.
        size: length of `data` in bytes.
        where: the file's name, for messages.

    Raises:
        ModelError: not a torch archive, a pickle that asks for anything but tensors, or a tensor
            that does not lie inside its storage.
    """
    archive = ZipDirectory(data, size, where)
    pickles = [name for name in archive.members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelError(
            f"{where}: a zip archive with {len(pickles)} members called data.pkl, a torch "
            "checkpoint has one: not a model file"
        )
    root = pickles[0].removesuffix("data.pkl")
    _require_little_endian(archive, root, where)
    limit = min(MAX_PICKLE_BYTES, 3 * size)
    program = archive.read(pickles[0], limit)
    tree = PickleMachine(program, where, _BASE_BUDGET_BYTES + size // 2).run()
    if not isinstance(tree, dict):
        raise ModelError(
            f"{where}: holds a {type(tree).__name__}, not a dictionary of tensors: save the "
            "model's state_dict()"
        )
    if len(tree) > MAX_TENSORS:
        raise ModelError(f"{where}: {len(tree)} tensors, the limit is {MAX_TENSORS}")
    entries: dict[str, TensorEntry] = {}
    total = 0
    for name, value in tree.items():
        if not isinstance(value, TensorRef):
            raise ModelError(
                f"{where}: entry {name[:80]!r} is a {type(value).__name__}, not a tensor: save "
                "only the model's state_dict()"
            )
        entry, nbytes = _place(archive, root, value, f"{where}: tensor {name[:200]!r}")
        entries[name] = entry
        total += nbytes
    if total > 2 * size:
        raise ModelError(
            f"{where}: its tensors add up to {total} bytes in a file of {size}, they share their "
            "storages: save contiguous copies"
        )
    return entries


def _require_little_endian(archive: ZipDirectory, root: str, where: str) -> None:
    name = f"{root}byteorder"
    if name in archive.members:
        order = archive.read(name, 16)
        if order != b"little":
            raise ModelError(f"{where}: byte order {order!r}, only little endian is read")


def _place(
    archive: ZipDirectory, root: str, tensor: TensorRef, label: str
) -> tuple[TensorEntry, int]:
    """Entry and size in bytes of a tensor that provably lies inside its storage."""
    storage = tensor.storage
    member_name = f"{root}data/{storage.key}"
    member = archive.members.get(member_name)
    if member is None:
        raise ModelError(f"{label} is in storage {storage.key[:80]!r}, which the archive lacks")
    if not member.is_stored:
        raise ModelError(
            f"{label} is compressed; torch stores tensors uncompressed: do not re-pack the archive"
        )
    dtype = DTYPES[storage.dtype].np
    available = member.size // dtype.itemsize
    if not 0 <= storage.elements <= available:
        raise ModelError(
            f"{label} is in a storage of {storage.elements} elements, its file holds {available}: "
            "damaged, copy it again"
        )
    shape = _sizes(tensor.shape, f"{label} has a shape")
    strides = _sizes(tensor.strides, f"{label} has strides")
    (offset,) = _sizes((tensor.offset,), f"{label} has an offset")
    if len(shape) != len(strides) or len(shape) > MAX_DIMS:
        raise ModelError(f"{label} has shape {shape} and strides {strides}: damaged")
    elements, claimed, last = 1, 1, offset
    for dim, stride in zip(shape, strides, strict=True):
        elements *= dim
        claimed *= max(dim, 1)
        last += max(dim - 1, 0) * stride
    inside = last < storage.elements if elements else offset <= storage.elements
    if not inside or elements > storage.elements or claimed > MAX_ELEMENTS:
        raise ModelError(
            f"{label} of shape {list(shape)}, strides {list(strides)}, offset {offset} does not "
            f"fit its storage of {storage.elements} elements: damaged, copy it again"
        )
    # NumPy checks strides even where a dimension has one or no element and they mean nothing.
    steps = tuple(s if d > 1 and elements else 0 for d, s in zip(shape, strides, strict=True))
    start = archive.content_start(member_name) + offset * dtype.itemsize
    return TensorEntry(storage.dtype, dtype, shape, steps, start), elements * dtype.itemsize


def _sizes(values: Any, label: str) -> tuple[int, ...]:
    """`values` as whole numbers from 0 up that fit in 63 bits."""
    if not isinstance(values, tuple) or len(values) > 64:
        raise ModelError(f"{label} that is no short tuple: damaged")
    if not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ModelError(f"{label} with something that is no whole number from 0 up: damaged")
    return values
