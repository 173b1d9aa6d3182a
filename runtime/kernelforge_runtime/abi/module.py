"""A compiled kernel: SPIR-V words with the signature they were checked against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from kernelforge_runtime.abi.signature import Signature


@dataclass(frozen=True)
class ShaderModule:
    """SPIR-V and its signature.

    Attributes:
        name: variant name, e.g. `gemv/f16/WORKGROUP64.ROWS4`; used in traces and errors.
        spirv: the module's bytes, little-endian 32-bit words.
        signature: what it takes.
    """

    name: str
    spirv: bytes
    signature: Signature

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the SPIR-V bytes, in hex."""
        return hashlib.sha256(self.spirv).hexdigest()
