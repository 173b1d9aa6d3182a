"""Opens a model file and hands out its tensors one at a time.

The file is mapped, not read: a tensor costs memory when it is asked for, and `raw` costs none.
Files are taken as hostile: everything a tensor claims is checked when the file is opened (by
`weights.pth` and `weights.safetensors`), so that reading one cannot fail or reach outside.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.dtypes import DTYPES
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import Quantized, dequantize
from kernelforge_runtime.stored_matrix import StoredMatrix
from kernelforge_runtime.stored_words import StoredWords
from kernelforge_runtime.weights.entry import TensorEntry
from kernelforge_runtime.weights.file_kind import HEAD_BYTES, file_kind
from kernelforge_runtime.weights.lazy_rows import LazyRows
from kernelforge_runtime.weights.packed import PackedEntry, pair_scales
from kernelforge_runtime.weights.pth import read_pth
from kernelforge_runtime.weights.safetensors import read_safetensors

FLOATS: Final = ("f32", "f16", "bf16")
_EXPONENT: Final = {"f32": 0x7F80_0000, "f16": 0x7C00, "bf16": 0x7F80}
_CHUNK_ELEMENTS: Final = 1 << 20


class Checkpoint:
    """The tensors of one model file, by name.

    Holds the file mapped until `close`; arrays from `raw` keep their part of the mapping alive.
    Iterating gives names in file order, indexing gives `tensor`.

    Attributes:
        path: the file.
        kind: "pth" or "safetensors".
        metadata: texts by name that a safetensors file carries; {} of a `.pth`. Texts longer than
            `weights.safetensors.MAX_METADATA_BYTES` are left out.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        data: mmap.mmap,
        entries: Mapping[str, TensorEntry],
        metadata: Mapping[str, str] | None = None,
        packed: Mapping[str, PackedEntry] | None = None,
    ) -> None:
        self.path = path
        self.kind = kind
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self._data: mmap.mmap | None = data
        self._entries = dict(entries)
        self._packed = dict(packed or {})

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions as stored, outermost first."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Stored format: "f32", "f16" or "bf16"; safetensors may also hold integers ("i8" ...).

        Of a quantised matrix "q8" or "nf4"; its shape is then that of the matrix.
        """
        return self._entry(name).dtype

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file, a quantised matrix' scales included."""
        if name in self._packed:
            packed = self._packed[name]
            return sum(4 * math.prod(e.shape) for e in (packed.weight, packed.scale))
        entry = self._entry(name)
        return math.prod(entry.shape) * entry.stored.itemsize

    def raw(self, name: str) -> NDArray[Any]:
        """The stored elements without a copy: read-only, bf16 as uint16.

        Of a quantised matrix its words. A `.pth` tensor may be transposed, so the array need not be
        contiguous, and a safetensors tensor may lie at an odd address.

        Raises:
            ModelError: no such tensor, or the checkpoint was closed.
        """
        entry = self._entry(name)
        return self._view(name, self._packed[name].weight if name in self._packed else entry)

    def quantized(self, name: str) -> Quantized | None:
        """Words and scales of a quantised matrix without a copy; None of any other tensor.

        Raises:
            ModelError: the checkpoint was closed.
        """
        packed = self._packed.get(name)
        if packed is None:
            return None
        return Quantized(self._view(name, packed.weight), self._view(name, packed.scale))

    @property
    def changed(self) -> Collection[str]:
        """Names of tensors that are not as the file has them; see `adapters.MergedCheckpoint`."""
        return ()

    def stored_rows(self, name: str, rows: NDArray[np.intp]) -> list[NDArray[Any]]:
        """Copies of some rows as stored: of a tensor taken as [rows, last dimension].

        Of a quantised matrix rows of its words, and rows of its scales.
        """
        found = self.quantized(name)
        arrays = [self.raw(name)] if found is None else [found.weight, found.scale]
        flat = [a if a.ndim == 2 else a.reshape(-1, *a.shape[-1:]) for a in arrays]
        copies = [a[rows] for a in flat]
        for array in arrays:
            self._forget(array)
        return copies

    def _view(self, name: str, entry: TensorEntry) -> NDArray[Any]:
        if self._data is None:
            raise ModelError(f"{self.path}: {name!r} was asked for after the file was closed")
        itemsize = entry.stored.itemsize
        if 0 in entry.shape:
            return np.empty(entry.shape, entry.stored)
        return np.ndarray(
            entry.shape,
            entry.stored,
            buffer=self._data,
            offset=entry.offset,
            strides=tuple(stride * itemsize for stride in entry.strides),
        )

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A new contiguous float32 array of the stored values, exactly; quantised ones decoded.

        Raises:
            ModelError: no such tensor, not a float tensor, or the checkpoint was closed.
        """
        found = self.quantized(name)
        if found is not None:
            return dequantize(found, self._packed[name].format)
        dtype = self._float_dtype(name)
        raw = self.raw(name)
        if dtype != "bf16":
            values = raw.astype(np.float32, order="C")
        else:
            bits = np.empty(raw.shape, np.uint32)
            np.left_shift(raw, 16, out=bits, dtype=np.uint32)
            values = bits.view(np.float32)
        self._forget(raw)
        return values

    def stored(self, name: str, shape: tuple[int, ...]) -> StoredMatrix | StoredWords | None:
        """A tensor as a matrix of this shape, unread; None where `tensor` has to make it.

        Raises:
            ModelError: no such tensor, or the checkpoint was closed.
        """
        if type(self) is not Checkpoint or len(shape) != 2:
            return None  # whoever changes tensors does so in `tensor`
        words = self.quantized(name)
        if words is not None:
            form = self._packed[name].format
            return StoredWords(words, form, f"{self.path}: {name}")
        if self.dtype(name) not in FLOATS:
            return None
        raw = self.raw(name)
        if not raw.flags.c_contiguous:
            return None
        where = f"{self.path}: {name}"
        return StoredMatrix(raw.reshape(shape), self.dtype(name), where, self._forget)

    def _forget(self, read: NDArray[Any]) -> None:
        """Lets the system take back the memory of a part of the file that was read.

        Its content stays in the file's cache as long as there is room: reading it again is right,
        and mostly fast.
        """
        if self._data is None or not hasattr(self._data, "madvise") or read.nbytes < mmap.PAGESIZE:
            return
        begin = np.frombuffer(self._data, np.uint8, 1).__array_interface__["data"][0]
        start = read.__array_interface__["data"][0] - begin
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (start + read.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if read.flags.c_contiguous and start >= 0 and whole > 0:
            self._data.madvise(mmap.MADV_DONTNEED, first, whole)

    def lazy_rows(self, name: str) -> LazyRows:
        """The rows of a 2-D float tensor, left in the file: valid after `close`, too.

        Raises:
            ModelError: no such tensor, not a 2-D float tensor, or the checkpoint was closed.
        """
        dtype, shape = self._float_dtype(name), self.shape(name)
        if len(shape) != 2:
            raise ModelError(
                f"{self.path}: tensor {name!r} has shape {list(shape)}, expected a table of rows"
            )
        return LazyRows(self.raw(name), DTYPES[dtype])

    def sha256(self) -> str:
        """Hex digest of the whole file; reads all of it."""
        if self._data is None:
            raise ModelError(f"{self.path}: its digest was asked for after the file was closed")
        digest = hashlib.sha256()
        with memoryview(self._data) as view:
            for start in range(0, len(view), 1 << 20):
                digest.update(view[start : start + (1 << 20)])
        return digest.hexdigest()

    def close(self) -> None:
        """Lets go of the file; arrays from `raw` stay valid and hold the mapping until freed."""
        # Not mmap.close(): NumPy does not pin the mapping, an array left over would read freed
        # memory. The last reference to go unmaps the file.
        self._data = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors)"

    def _float_dtype(self, name: str) -> str:
        dtype = self.dtype(name)
        if dtype not in FLOATS:
            raise ModelError(
                f"{self.path}: tensor {name!r} is {dtype}, weights are f32, f16 or bf16"
            )
        return dtype

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelError(
                f"{self.path}: has no tensor {name!r} (it has {len(self)}, the first is "
                f"{next(iter(self._entries))!r})"
            ) from None


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a `.pth` or `.safetensors` file; its content decides which, not its name.

    Raises:
        ModelError: no such file, not a model file, or a damaged or hostile one.
    """
    where = Path(path)
    data = _map(where)
    try:
        kind = file_kind(data[:HEAD_BYTES], where)
        metadata: dict[str, str] = {}
        packed: dict[str, PackedEntry] = {}
        if kind == "pth":
            entries = read_pth(data, len(data), str(where))
        else:
            entries, metadata = read_safetensors(data, len(data), str(where))
            entries, packed = pair_scales(entries, metadata, str(where))
        if not entries:
            raise ModelError(f"{where}: a {kind} file without tensors: not a model")
    except BaseException:
        data.close()
        raise
    return Checkpoint(where, kind, data, entries, metadata, packed)


def check_finite(checkpoint: Checkpoint) -> None:
    """Reads every float tensor once, a piece at a time.

    Raises:
        ModelError: naming the first tensor that holds NaN or infinity.
    """
    for name in checkpoint:
        dtype = checkpoint.dtype(name)
        found = checkpoint.quantized(name)
        if found is not None and not np.isfinite(found.scale.view(np.float16)).all():
            raise ModelError(f"{checkpoint.path}: tensor {name!r} has an infinite scale: damaged")
        if dtype not in FLOATS:
            continue
        raw = checkpoint.raw(name)
        bits = np.dtype(f"<u{raw.itemsize}")
        mask = bits.type(_EXPONENT[dtype])
        rows = np.atleast_1d(raw)
        step = max(1, _CHUNK_ELEMENTS * len(rows) // max(rows.size, 1))
        for start in range(0, len(rows), step):
            bad = (rows[start : start + step].view(bits) & mask) == mask
            if bad.any():
                first = [int(i) for i in np.argwhere(bad)[0]]
                first[0] += start
                raise ModelError(
                    f"{checkpoint.path}: tensor {name!r} holds NaN or infinity (first at {first}):"
                    " the file is damaged or its training diverged"
                )


def _map(path: Path) -> mmap.mmap:
    """The file's bytes, mapped read-only; only a regular file, so that opening cannot block."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(f"{path}: a folder, not a model: pass the .pth or .safetensors in it")
        if not stat.S_ISREG(mode):
            raise ModelError(f"{path}: not a regular file: pass a .pth or .safetensors file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path}: empty, 0 bytes: copy or download it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file: check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(f"{path}: cannot be opened: {reason}") from None
