"""Runs a model with the package `web-rwkv-py`, a WebGPU engine."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lines import seconds, serve

_model: Any = None


def load(path: str, threads: int) -> str:
    """Loads a file in this engine's layout; says what runs it."""
    global _model
    import web_rwkv_py

    _model = web_rwkv_py.Model(path)
    return f"web-rwkv-py {version('web-rwkv-py')}"


def logits(tokens: list[int]) -> list[float]:
    """Of the last token, fed one by one from an empty state."""
    _model.clear_state()
    found: Any = []
    for token in tokens:
        found = _model.run([token])
    return [float(value) for value in found]


def prefill(tokens: list[int]) -> float:
    """Seconds for a prompt."""
    return seconds(lambda: _model.run(tokens))


def decode(tokens: list[int]) -> float:
    """Seconds for these tokens, one by one."""

    def work() -> None:
        for token in tokens:
            _model.run([token])

    return seconds(work)


serve({"load": load, "logits": logits, "prefill": prefill, "decode": decode})
