"""Reads rwkv.cpp's ggmf model files and undoes its changes: official names, shapes and values.

Only tests need it: the tiny trained models that are published come in this format.
`read_ggmf(path)` gives float32 arrays by official name, in file order.
"""

import struct
from pathlib import Path

import numpy as np

MAGIC = 0x67676D66
_FLOATS = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_QUANTISED = {7: 22, 8: 24}  # type -> bytes per block of 32
_SHIFTS = "rwkvag"
_TURNED_V7 = tuple(f"att.{letter}{i}" for letter in "wavg" for i in (1, 2))
_TURNED_V6 = ("att.time_maa_w1", "att.time_decay_w1", "att.time_decay_w2")


def read_ggmf(path):
    """Official name -> float32 array. Raises ValueError for anything that is not such a file."""
    raw = parse(Path(path).read_bytes())
    return official(raw)


def parse(blob):
    """Name -> float32 array as stored, dimensions outermost first."""
    if len(blob) < 24:
        raise ValueError(f"{len(blob)} bytes are no ggmf file")
    magic, version, *_ = struct.unpack_from("<6I", blob)
    if magic != MAGIC or version not in (100, 101):
        raise ValueError(f"not ggmf: magic {magic:#x}, version {version}")
    with np.errstate(all="ignore"):  # the values may be anything
        return _tensors(blob)


def _tensors(blob):
    arrays, at = {}, 24
    while at < len(blob):
        if at + 12 > len(blob):
            raise ValueError(f"a tensor header is cut short at byte {at}")
        ndim, name_bytes, kind = struct.unpack_from("<3I", blob, at)
        at += 12
        if not 1 <= ndim <= 3 or name_bytes > 256 or at + 4 * ndim + name_bytes > len(blob):
            raise ValueError(f"a tensor header with {ndim} dimensions at byte {at}")
        shape = struct.unpack_from(f"<{ndim}I", blob, at)[::-1]
        at += 4 * ndim
        name = blob[at : at + name_bytes].decode("utf-8")  # UnicodeDecodeError is a ValueError
        at += name_bytes
        elements = 1
        for dim in shape:
            elements *= dim
        if kind in _FLOATS:
            size = elements * _FLOATS[kind].itemsize
        elif kind in _QUANTISED and shape[-1] % 32 == 0:
            size = elements // 32 * _QUANTISED[kind]
        else:
            raise ValueError(f"tensor {name!r} has type {kind} and shape {shape}")
        if size > len(blob) - at:
            raise ValueError(f"tensor {name!r} of shape {shape} runs beyond the file")
        if name in arrays:
            raise ValueError(f"tensor {name!r} appears twice")
        content = blob[at : at + size]
        at += size
        if kind in _FLOATS:
            values = np.frombuffer(content, _FLOATS[kind]).astype(np.float32)
        else:
            values = _dequantise(content, kind)
        arrays[name] = values.reshape(shape)
    return arrays


def _dequantise(content, kind):
    """Q5_0 and Q5_1: blocks of 32, five bits each, a scale and (Q5_1) an offset."""
    has_offset = kind == 8
    fields = [
        ("d", "<f2"),
        *([("m", "<f2")] if has_offset else []),
        ("high", "<u4"),
        ("low", "u1", 16),
    ]
    blocks = np.frombuffer(content, np.dtype(fields))
    low = np.concatenate([blocks["low"] & 15, blocks["low"] >> 4], axis=1)
    high = (blocks["high"][:, None] >> np.arange(32, dtype=np.uint32)) & 1
    quants = (low | (high << 4)).astype(np.float32)
    scale = blocks["d"].astype(np.float32)[:, None]
    if has_offset:
        return quants * scale + blocks["m"].astype(np.float32)[:, None]
    return (quants - 16) * scale


def official(arrays):
    """Arrays under the official names, with the official shapes and values."""
    if "emb.weight" not in arrays:
        raise ValueError("no emb.weight: not an RWKV model")
    is_v7 = "blocks.0.att.r_k" in arrays
    is_v6 = "blocks.0.att.time_maa_x" in arrays
    heads = is_v6 or "blocks.0.att.ln_x.weight" in arrays
    out = {}
    for name, array in arrays.items():
        if name.endswith("att.x_rwkvag"):
            if array.shape[0] != 6:
                raise ValueError(f"{name} has shape {array.shape}, not six rows")
            for row, letter in zip(array, _SHIFTS, strict=True):
                out[name.replace("x_rwkvag", f"x_{letter}")] = row.reshape(1, 1, -1)
        elif is_v7:
            out[name] = _v7(name, array)
        elif is_v6:
            out[name] = _v6(name, array)
        else:
            out[name] = _v4_v5(name, array, heads)
    return out


def _vector(array):
    return array.reshape(1, 1, -1)


def _v7(name, array):
    if name.endswith(_TURNED_V7):
        return np.ascontiguousarray(array.reshape(array.shape[-2:]).T)
    if name.endswith(("att.w0", "att.a0", "att.v0", "att.k_k", "att.k_a", "ffn.x_k")):
        return _vector(array)
    if name.endswith("att.r_k"):
        return array.reshape(array.shape[0], -1)
    return array


def _v6(name, array):
    if name.endswith(_TURNED_V6):
        return np.ascontiguousarray(array.T)
    if name.endswith("att.time_maa_w2"):
        return np.ascontiguousarray(array.swapaxes(-1, -2))
    if name.endswith("att.time_faaaa"):
        return array.reshape(array.shape[0], -1)
    if ".time_maa_" in name or name.endswith("att.time_decay"):
        return _vector(array)
    return array


def _v4_v5(name, array, heads):
    with np.errstate(all="ignore"):
        if name.endswith("att.time_decay"):
            if not heads:
                return np.log(-array.astype(np.float64)).astype(np.float32).reshape(-1)
            raw = np.log(-np.log(array.astype(np.float64))).astype(np.float32)
            return raw.reshape(raw.shape[0], -1) if raw.size > raw.shape[0] else raw.reshape(-1)
        if name.endswith("att.time_first") and heads:
            return np.log(array.astype(np.float64)).astype(np.float32).reshape(-1)
    if name.endswith("att.time_faaaa"):
        return array.reshape(array.shape[0], -1)
    if ".time_mix_" in name:
        return _vector(array)
    return array
