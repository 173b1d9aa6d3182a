"""What torch's matrix products reach on this machine: the limit that others are compared with."""

from __future__ import annotations

from typing import Any

from lines import seconds, serve

REPEATS = 12


def load(path: str, threads: int) -> str:
    """Says what will multiply; there is no model to load."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"torch {torch.__version__} on {where}, {torch.get_num_threads()} threads"


def matmul(size: int, dtype: str) -> float:
    """Best GFLOP/s of a square product of that size, multiply and add counted as two."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    made: Any = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    one, two = (torch.randn(size, size, device=device, dtype=made) for _ in range(2))

    def work() -> None:
        torch.matmul(one, two)
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    return 2 * size**3 / min(seconds(work) for _ in range(REPEATS)) / 1e9


serve({"load": load, "matmul": matmul})
