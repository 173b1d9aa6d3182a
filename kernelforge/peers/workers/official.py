"""Runs a model with the package `rwkv`, the official one, on torch's CPU back end in float32."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from lines import seconds, serve

_model: Any = None
_state: Any = None


def load(path: str, threads: int) -> str:
    """Loads `.safetensors` by way of the `.pth` that the package wants; says what runs it."""
    global _model
    os.environ["RWKV_JIT_ON"] = "1"
    os.environ["RWKV_CUDA_ON"] = "0"
    import torch
    from safetensors.torch import load_file

    if threads:
        torch.set_num_threads(threads)
    tensors = load_file(path)
    goose = "blocks.0.att.r_k" in tensors
    if goose:
        os.environ["RWKV_V7_ON"] = "1"  # read when the package is imported
    torch.save({name: tensor.float() for name, tensor in tensors.items()}, path + ".pth")
    del tensors
    from rwkv.model import RWKV

    # RWKV-7's class adds the ending itself, the older one takes either.
    _model = RWKV(model=path, strategy="cpu fp32")
    return f"rwkv {version('rwkv')}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def logits(tokens: list[int]) -> list[float]:
    """Of the last token, fed one by one from an empty state."""
    global _state
    found, _state = None, None
    for token in tokens:
        found, _state = _model.forward([token], _state)
    return [float(value) for value in found]


def prefill(tokens: list[int]) -> float:
    """Seconds for a prompt."""

    def work() -> None:
        global _state
        _, _state = _model.forward(tokens, _state)

    return seconds(work)


def decode(tokens: list[int]) -> float:
    """Seconds for these tokens, one by one."""

    def work() -> None:
        global _state
        for token in tokens:
            _, _state = _model.forward([token], _state)

    return seconds(work)


serve({"load": load, "logits": logits, "prefill": prefill, "decode": decode})
