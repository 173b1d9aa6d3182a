"""What a vocabulary is, the simplest one, and what all of them check.

The others are `text.world` and `text.hugging_face`; `text.loading` finds a model's.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

from kernelforge_runtime.errors import TokenizerError

BYTE_IDS: Final = 256


class Tokenizer(Protocol):
    """A vocabulary.

    Attributes:
        name: what it is, for messages: "world", "bytes", or the file's path.
        vocab_size: rows of the model's embedding; ids lie in [0, vocab_size).
        end_token: the id that ends a document, or None where the vocabulary has none.
        is_bytewise: whether `decode(a + b)` is always `decode(a) + decode(b)`.
    """

    name: str
    vocab_size: int
    end_token: int | None
    is_bytewise: bool

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text; bytes need not be UTF-8 unless the vocabulary demands it.

        Raises:
            TokenizerError: the text cannot be expressed.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes that the tokens stand for; they may end within a character.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        ...


class ByteTokenizer:
    """Token = byte: for models with a vocabulary of 256."""

    def __init__(self) -> None:
        self.name = "bytes"
        self.vocab_size = BYTE_IDS
        self.end_token: int | None = None
        self.is_bytewise = True

    def encode(self, text: str | bytes) -> list[int]:
        """The bytes of the text, UTF-8 where it is a string."""
        return list(utf8(text))

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The tokens as bytes."""
        check_ids(tokens, self.vocab_size, self.name)
        return bytes(tokens)


def utf8(text: str | bytes) -> bytes:
    """The bytes of a text.

    Raises:
        TokenizerError: a string with lone surrogates, which no encoding expresses.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        if 0xDC80 <= ord(text[error.start]) <= 0xDCFF:  # how Python brings in what is no text
            raise TokenizerError(
                f"byte {ord(text[error.start]) - 0xDC00:#x} at character {error.start} of the text "
                "is not UTF-8: convert the text first"
            ) from None
        raise TokenizerError(
            f"the text holds {text[error.start]!r} at character {error.start}, half of a "
            "surrogate pair: pass valid Unicode, or bytes"
        ) from None


def check_ids(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    """Raises TokenizerError unless every id lies in [0, vocab_size)."""
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise TokenizerError(
                f"tokenizer {name}: id {token} is outside its {vocab_size} ids: is this the "
                "model's own vocabulary?"
            )


def require(module: str, install: str) -> Any:
    """The imported module, or a TokenizerError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TokenizerError(
            f"this tokenizer needs the package {module} ({error}): pip install '{install}'"
        ) from None
