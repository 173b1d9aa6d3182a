"""Writes small model files for tests, well-formed or wrong in one chosen place. No torch needed."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

_STORAGE = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage"}
_CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


class Global:
    """Pickled as a bare reference to `module.name`, whether or not that exists here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a `Global` with arguments."""

    def __init__(self, target, *arguments):
        self.target, self.arguments = target, arguments


class Storage:
    """Pickled as torch's persistent id of a storage."""

    def __init__(self, key, kind, elements, module="torch"):
        self.ident = ("storage", Global(module, kind), key, "cpu", elements)


class _Pickler(pickle._Pickler):  # the Python one: its instructions can be extended
    def persistent_id(self, obj):
        return obj.ident if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.target)
            self.save(tuple(obj.arguments))
            self.write(b"R")
        else:
            super().save(obj, save_persistent_id)


def dumps(value, protocol=2):
    """Pickle of a tree of plain values, `Global`, `Call` and `Storage`."""
    out = io.BytesIO()
    _Pickler(out, protocol).dump(value)
    return out.getvalue()


def tensor(storage, offset, shape, strides):
    """The call that rebuilds a tensor."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, strides, False, Call(ORDERED_DICT))


ORDERED_DICT = Global("collections", "OrderedDict")


def parameter(inner):
    """The call that wraps a tensor as a parameter."""
    return Call(Global("torch._utils", "_rebuild_parameter"), inner, True, Call(ORDERED_DICT))


def write_archive(path, program, storages, *, method=zipfile.ZIP_STORED, extra=()):
    """A torch-like zip archive around any pickle."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"model/data/{key}", content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def write_pth(path, arrays, *, dtype=None, transposed=(), parameters=(), method=zipfile.ZIP_STORED):
    """A `.pth` of `arrays` (name -> float32/float16 array, or uint16 for bf16)."""
    tree, storages = OrderedDict(), {}
    for index, (name, array) in enumerate(arrays.items()):
        kind = dtype or {"float32": "f32", "float16": "f16", "uint16": "bf16"}[array.dtype.name]
        storages[str(index)] = (array.T if name in transposed else array).tobytes()
        strides = tuple(
            s // array.itemsize
            for s in (
                np.ascontiguousarray(array.T).T.strides
                if name in transposed
                else array.copy("C").strides
            )
        )
        ref = Storage(str(index), _STORAGE[kind], array.size)
        tree[name] = tensor(ref, 0, array.shape, strides)
        if name in parameters:
            tree[name] = parameter(tree[name])
    return write_archive(path, dumps(dict(tree)), storages, method=method)


def safetensors_bytes(header, data=b""):
    """A safetensors file from a header (dict or raw bytes) and its data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors(path, arrays):
    """A safetensors file of `arrays`, written by hand."""
    header, blobs, at = {}, [], 0
    for name, array in arrays.items():
        kind = {"float32": "f32", "float16": "f16", "uint16": "bf16"}[array.dtype.name]
        blob = array.tobytes()
        header[name] = {
            "dtype": _CODES[kind],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    Path(path).write_bytes(safetensors_bytes(header, b"".join(blobs)))
    return path
