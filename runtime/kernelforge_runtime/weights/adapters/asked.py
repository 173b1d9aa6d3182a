r"""Which adapter files are asked for, and how: `FILE[:ALPHA[:REGEX]]`.

The file ends at the first colon behind the name of a file that is there, else at the first colon at
all; the colon of a drive letter (`C:\x.pth`) is none of these. ALPHA may be empty: `FILE::REGEX`.
What is left is the expression, colons and all.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kernelforge_runtime.errors import ModelError

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LONGEST_PATTERN = 1000


@dataclass(frozen=True)
class Adapter:
    """One adapter file, and what of it is wanted.

    Attributes:
        path: a `.pth` or `.safetensors` file.
        alpha: of LoRA, whose files do not say it: the product of the factors is added times alpha
            over rank. PiSSA and DiSHA have none.
        pattern: a regular expression; only tensors of the model in whose names it is found are
            changed. All where None.

    Raises:
        ModelError: alpha is not a finite number, or the pattern no regular expression.
    """

    path: str | os.PathLike[str]
    alpha: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None:
            number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
            if not number or not math.isfinite(self.alpha):
                raise ModelError(
                    f"adapter {self.path}: alpha is {self.alpha!r}, it must be a finite number"
                )
        if self.pattern is not None:
            self._compiled()

    def wants(self, name: str) -> bool:
        """Whether this tensor of the model is to be changed."""
        return self.pattern is None or self._compiled().search(name) is not None

    def _compiled(self) -> re.Pattern[str]:
        text = self.pattern or ""
        if len(text) > _LONGEST_PATTERN:
            raise ModelError(
                f"adapter {self.path}: its expression has {len(text)} characters, at most "
                f"{_LONGEST_PATTERN} are taken"
            )
        try:
            return re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise ModelError(
                f"adapter {self.path}: {text!r} is no regular expression: {error}"
            ) from None

    def __str__(self) -> str:
        text = str(self.path)
        if self.alpha is not None or self.pattern is not None:
            text += f":{'' if self.alpha is None else format(self.alpha, 'g')}"
        return text if self.pattern is None else f"{text}:{self.pattern}"


def parse_adapter(text: str) -> Adapter:
    """Reads `FILE[:ALPHA[:REGEX]]`.

    Raises:
        ModelError: no file is named, alpha is no finite number, or REGEX no regular expression.
    """
    path, rest = _split(text)
    if not path:
        raise ModelError(f"adapter {text!r}: names no file; expected FILE[:ALPHA[:REGEX]]")
    if rest is None:
        return Adapter(path)
    number, colon, pattern = rest.partition(":")
    alpha = None
    if number.strip():
        try:
            alpha = float(number)
        except ValueError:
            raise ModelError(
                f"adapter {text!r}: alpha {number!r} is not a number; expected FILE[:ALPHA[:REGEX]]"
            ) from None
    return Adapter(path, alpha, pattern if colon and pattern else None)


def as_adapters(
    given: Iterable[Adapter | str | os.PathLike[str]] | None,
) -> tuple[Adapter, ...]:
    """Adapters as callers write them: made already, as text (see parse_adapter), or as a path.

    Raises:
        ModelError: one of them is not understood.
    """
    if given is None:
        return ()
    if isinstance(given, (str, os.PathLike, Adapter)):
        given = [given]
    return tuple(_one(each) for each in given)


def _one(given: Adapter | str | os.PathLike[str]) -> Adapter:
    if isinstance(given, Adapter):
        return given
    if isinstance(given, str):
        return parse_adapter(given)
    if isinstance(given, os.PathLike):
        return Adapter(given)
    raise ModelError(f"adapter {given!r}: expected an Adapter, a path, or FILE[:ALPHA[:REGEX]]")


def _split(text: str) -> tuple[str, str | None]:
    """(file, what stands behind its colon); None where there is no colon."""
    if _is_file(text):
        return text, None
    start = 2 if _DRIVE.match(text) else 0
    colons = [at for at in range(start, len(text)) if text[at] == ":"]
    if not colons:
        return text, None
    at = next((at for at in colons if _is_file(text[:at])), colons[0])
    return text[:at], text[at + 1 :]


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte in it
        return False
