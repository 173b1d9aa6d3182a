"""Matrix products by torch, as the limit that a device's own products are compared with."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kernelforge.peers.process import PeerProcess
from kernelforge.report.comparisons import MatmulLimits

START_S = 120.0
PRODUCT_S = 120.0


def measure_matmul(
    size: int = 1024,
    formats: tuple[str, ...] = ("f32",),
    python: str | None = None,
    threads: int = 0,
) -> MatmulLimits:
    """Multiplies square matrices with torch.

    Args:
        size: M, N and K.
        formats: f32, f16, bf16.
        python: the interpreter that has torch; this one by default.
        threads: of torch; 0: as many as it takes.

    Raises:
        PeerError: there is no torch, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = PeerProcess("matmul", Path(folder), python)
        try:
            label = process.ask_label("load", START_S, path="", threads=threads)
            gflops = {
                name: process.ask_number("matmul", PRODUCT_S, size=size, dtype=name)
                for name in formats
            }
        finally:
            process.close()
    return MatmulLimits(label, size, gflops)
