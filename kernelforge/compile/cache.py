"""A content-addressed store of SPIR-V: source, flags and compiler version decide the key.

Entries are written once and never changed, so any number of processes can share a folder. The
folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from kernelforge.compile.glslang import FLAGS, Compiler
from kernelforge.resources import cache_dir
from kernelforge_runtime.written_file import written_whole

log = logging.getLogger(__name__)

_FORMAT = b"kernelforge spirv 1\n"
_HASH_BYTES = 32


class SpirvCache:
    """SPIR-V by what it was compiled from.

    A folder that cannot be written costs time, not results: it is said once, in the log.

    Args:
        folder: where entries are kept; below the user's cache folder if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "spirv"
        self._writable = True

    @staticmethod
    def key(glsl: str, compiler: Compiler, flags: tuple[str, ...] = FLAGS) -> str:
        """The key of a source text, in hex."""
        digest = hashlib.sha256(_FORMAT)
        for part in (compiler.version, *flags, glsl):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def get(self, key: str) -> bytes | None:
        """The SPIR-V kept under this key; None where there is none, or it is damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        start = len(_FORMAT) + _HASH_BYTES
        spirv = data[start:]
        if data[:start] != _FORMAT + hashlib.sha256(spirv).digest():
            log.warning("cache entry %s is damaged: compiling again", path)
            return None
        return spirv

    def put(self, key: str, spirv: bytes) -> None:
        """Keeps SPIR-V under this key; readers see the whole entry or none."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(_FORMAT + hashlib.sha256(spirv).digest() + spirv)
        except OSError as error:
            if self._writable:
                log.warning("cannot keep compiled kernels in %s: %s", self.folder, error)
            self._writable = False

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.spv"
