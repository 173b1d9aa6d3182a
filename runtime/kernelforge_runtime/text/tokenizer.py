"""Turns text into token ids and back, with the vocabulary a model was trained on.

Three kinds: the World vocabulary (through `pyrwkv_tokenizer`), a Hugging Face `tokenizer.json`
(through `tokenizers`, an extra), and plain bytes for tiny models. The libraries are imported when
a vocabulary is loaded. Partial characters while streaming are `text.stream`'s business.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from kernelforge_runtime.errors import TokenizerError

WORLD_IDS: Final = 65_530
"""Ids of the World vocabulary: 0 ends a document, 1 to 65529 are tokens."""
_WORLD_PADDED: Final = 65_536
_BYTE_IDS: Final = 256


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
        self.vocab_size = _BYTE_IDS
        self.end_token: int | None = None
        self.is_bytewise = True

    def encode(self, text: str | bytes) -> list[int]:
        """The bytes of the text, UTF-8 where it is a string."""
        return list(utf8(text))

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The tokens as bytes."""
        check_ids(tokens, self.vocab_size, self.name)
        return bytes(tokens)


def load_tokenizer(spec: str | os.PathLike[str], vocab_size: int) -> Tokenizer:
    """The tokenizer for a model.

    Args:
        spec: "auto" (by `vocab_size`), "world", "bytes", the path of a Hugging Face
            `tokenizer.json`, or of a vocabulary in the World format (`.txt`).
        vocab_size: rows of the model's embedding.

    Raises:
        TokenizerError: no such vocabulary, it does not fit the model, or its library is missing.
    """
    kind = str(spec)
    if kind == "auto":
        kind = _kind_for(vocab_size)
    if kind == "bytes":
        if vocab_size < _BYTE_IDS:
            raise TokenizerError(
                f"tokenizer bytes needs {_BYTE_IDS} ids, the model has {vocab_size}: pass the "
                "model's own vocabulary"
            )
        return ByteTokenizer()
    path = Path(kind)
    if kind == "world" or path.suffix == ".txt":
        from kernelforge_runtime.text.world import WorldTokenizer

        return WorldTokenizer(None if kind == "world" else path, vocab_size)
    if path.suffix == ".json":
        from kernelforge_runtime.text.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path, vocab_size)
    raise TokenizerError(
        f"tokenizer {kind!r} is not known: pass auto, world, bytes, or the path of a "
        "tokenizer.json or a World vocabulary .txt"
    )


def _kind_for(vocab_size: int) -> str:
    if vocab_size == _BYTE_IDS:
        return "bytes"
    if WORLD_IDS <= vocab_size <= _WORLD_PADDED:
        return "world"
    raise TokenizerError(
        f"no built-in tokenizer has {vocab_size} ids (256 is bytes, 65536 is World): pass the "
        "model's tokenizer.json, for Pile models 20B_tokenizer.json"
    )


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
