"""Runs a model with the package `llama-cpp-python`, llama.cpp's own library."""

from __future__ import annotations

import os
from typing import Any

from lines import seconds, serve

CONTEXT = 1 << 17
"""Positions counted before the state is emptied; a recurrent model keeps none of them."""
_engine: Any = None
_package: Any = None


def load(path: str, threads: int) -> str:
    """Loads a GGUF file; says what runs it."""
    global _engine, _package
    import llama_cpp

    _package = llama_cpp
    count = threads or len(os.sched_getaffinity(0))
    offload = bool(llama_cpp.llama_supports_gpu_offload())
    _engine = llama_cpp.Llama(
        model_path=path,
        n_ctx=CONTEXT,
        n_threads=count,
        n_threads_batch=count,
        n_gpu_layers=-1 if offload else 0,
        verbose=False,
    )
    where = "its GPU" if offload else f"CPU, {count} threads"
    return f"llama-cpp-python {llama_cpp.__version__} on {where}"


def _feed(tokens: list[int]) -> Any:
    """Runs tokens, then waits for the last one's logits, which some back ends compute later."""
    _engine.eval(tokens)
    return _package.llama_get_logits_ith(_engine.ctx, -1)


def _make_room(tokens: int) -> None:
    if _engine.n_tokens + tokens > CONTEXT:
        _engine.reset()


def logits(tokens: list[int]) -> list[float]:
    """Of the last token, fed one by one from an empty state."""
    _engine.reset()
    found: Any = []
    for token in tokens:
        found = _feed([token])
    return [float(found[i]) for i in range(_engine.n_vocab())]


def prefill(tokens: list[int]) -> float:
    """Seconds for a prompt."""
    _make_room(len(tokens))
    return seconds(lambda: _feed(tokens))


def decode(tokens: list[int]) -> float:
    """Seconds for these tokens, one by one."""
    _make_room(len(tokens))

    def work() -> None:
        for token in tokens:
            _feed([token])

    return seconds(work)


serve({"load": load, "logits": logits, "prefill": prefill, "decode": decode})
