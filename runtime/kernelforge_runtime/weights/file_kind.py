"""Tells what a model file is from its first bytes, and says so plainly when it is not one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from kernelforge_runtime.errors import ModelError

HEAD_BYTES: Final = 256

_RWKV_CPP: Final = {b"fmgg": "ggmf", b"lmgg": "ggml", b"tjgg": "ggjt"}
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}
_HTML: Final = re.compile(rb"\s*(<!doctype|<html|<head|<\?xml|<!--)", re.IGNORECASE)


def file_kind(head: bytes, path: Path) -> str:
    """Which reader a file is for: "pth" or "safetensors".

    Args:
        head: the file's first `HEAD_BYTES` bytes, or all of them; not empty.
        path: where it came from: named in messages; its suffix decides only where the bytes
            say nothing.

    Raises:
        ModelError: any other kind of file.
    """
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return "pth"
    problem = _known_problem(head)
    if problem is None and path.suffix in (".safetensors", ".st"):
        return "safetensors"
    if problem is None:
        problem = (
            f"starts with {head[:8].hex(' ')}, which is neither a torch .pth archive nor "
            "safetensors: pass an RWKV model file"
        )
    raise ModelError(f"{path}: {problem}")


def _known_problem(head: bytes) -> str | None:
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the model itself: run `git lfs pull` to fetch it"
    if _HTML.match(head):
        return "a web page, not a model: download the file itself (the raw link)"
    if head.startswith(b"GGUF"):
        return "a GGUF file, which is not supported: pass the original .pth or .safetensors"
    if head[:4] in _RWKV_CPP:
        return (
            f"an rwkv.cpp model ({_RWKV_CPP[head[:4]]} format), which is not supported: pass the "
            "original .pth or .safetensors"
        )
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            "a bare pickle, as torch wrote before version 1.6, which is not read because loading "
            "it would run code: load it in torch and save it again"
        )
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"compressed with {name}: unpack it first"
    return None
