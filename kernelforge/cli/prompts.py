"""Reads the prompts of a batch: a text file with one on each line, or JSON lines with settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernelforge.cli.choice import SAMPLING
from kernelforge_runtime.engine.engine import Engine
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.errors import KernelForgeError, ModelError
from kernelforge_runtime.text import Sampling

KEYS = ("prompt", "ids", "tokens", "stop", *SAMPLING)


@dataclass(frozen=True)
class Prompt:
    """One prompt, what it asks for otherwise, and where it came from."""

    where: str
    text: str | list[int]
    asks: dict[str, Any]

    def submit(
        self, engine: Engine, tokens: int, stop: list[str], sampling: Mapping[str, Any]
    ) -> Request:
        """Hands it to the engine with these settings, but for what it asks for itself.

        Args:
            engine: to serve it.
            tokens: at most.
            stop: strings that end its text.
            sampling: settings by name. Not a Sampling: penalties that nobody names are none where
                the line's own temperature is 0.

        Raises:
            ModelError: it cannot be served.
        """
        own = {name: value for name, value in self.asks.items() if name in SAMPLING}
        try:
            return engine.submit(
                self.text,
                self.asks.get("tokens", tokens),
                Sampling(**{**sampling, **own}),
                stop=self.asks.get("stop", stop),
            )
        except KernelForgeError as error:
            raise ModelError(f"{self.where}: {error}") from None


def read_prompts(file: str | None, given: list[str]) -> list[Prompt]:
    """The prompts of the command line, then those of a file.

    Args:
        file: `-` is stdin; a name that ends in .jsonl is read as JSON lines, each a string or an
            object of KEYS; else every line that is not blank is a prompt.
        given: texts.

    Raises:
        ModelError: the file cannot be read, or a line of it is not understood.
    """
    found = [Prompt(f"--prompt {i}", text, {}) for i, text in enumerate(given, 1)]
    if file is None:
        return found
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode("utf-8-sig")  # editors put a mark first that is no part of it
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{file}: byte {error.start} is not UTF-8; convert the text first"
        ) from None
    read = _json_line if file.endswith(".jsonl") else _text_line
    return found + [read(where, line) for where, line in _lines(file, text)]


def _lines(file: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield f"{file}:{number}", line


def _text_line(where: str, line: str) -> Prompt:
    return Prompt(where, line, {})


def _json_line(where: str, line: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: not JSON: {error}") from None
    if isinstance(value, str):
        return Prompt(where, value, {})
    if not isinstance(value, dict) or ("prompt" in value) == ("ids" in value):
        raise ModelError(f'{where}: expected a string, or an object with "prompt" or "ids"')
    if isinstance(value.get("ids"), str):
        raise ModelError(f'{where}: "ids" is text: it is a list of token ids, "prompt" is text')
    if unknown := sorted(set(value) - set(KEYS)):
        raise ModelError(f"{where}: {unknown[0]!r} is not known; there are {', '.join(KEYS)}")
    asks = {name: v for name, v in value.items() if name not in ("prompt", "ids")}
    return Prompt(where, value["prompt"] if "prompt" in value else value["ids"], asks)
