"""The World vocabulary of RWKV: greedy longest match over 65,529 byte strings.

`pyrwkv_tokenizer` encodes valid text; its `decode` panics on bytes that end within a character,
so the id to bytes table is read here from the vocabulary file that the library ships.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

from kernelforge_runtime.errors import TokenizerError
from kernelforge_runtime.text.tokenizer import check_ids, require, utf8


class WorldTokenizer:
    """World vocabulary; see `Tokenizer` for the attributes."""

    def __init__(self, path: Path | None, vocab_size: int) -> None:
        """Loads the vocabulary.

        Args:
            path: a vocabulary file in the World format, or None for the official one.
            vocab_size: rows of the model's embedding.

        Raises:
            TokenizerError: library or file missing, a malformed file, or more ids than rows.
        """
        library = require("pyrwkv_tokenizer", "pyrwkv-tokenizer")
        self.name = "world" if path is None else str(path)
        self.end_token: int | None = 0
        self.is_bytewise = True
        self.vocab_size = vocab_size
        file = path or Path(library.__file__).with_name("rwkv_vocab_v20230424.txt")
        self._table = read_vocabulary(file)
        if len(self._table) > vocab_size:
            raise TokenizerError(
                f"tokenizer {self.name} has {len(self._table)} ids, the model {vocab_size}: pass "
                "the model's own vocabulary"
            )
        # The library panics on some vocabularies that are not the official one.
        self._encoder = library.RWKVTokenizer() if path is None else None
        self._ids: dict[bytes, int] = {}
        self._longest: dict[bytes, int] = {}

    def encode(self, text: str | bytes) -> list[int]:
        """Ids by greedy longest match; slower for own vocabularies and bytes that are no UTF-8."""
        raw = utf8(text)
        if self._encoder is None:
            return self._encode_bytes(raw)
        try:
            return list(self._encoder.encode(raw.decode("utf-8")))
        except UnicodeDecodeError:
            return self._encode_bytes(raw)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The tokens' bytes; the end token and unused rows give none."""
        check_ids(tokens, self.vocab_size, self.name)
        table = self._table
        return b"".join(table[token] for token in tokens if token < len(table))

    def _encode_bytes(self, raw: bytes) -> list[int]:
        if not self._ids:
            self._ids = {token: i for i, token in enumerate(self._table) if token}
            for token in self._ids:
                start = token[:2]
                self._longest[start] = max(self._longest.get(start, 1), len(token))
        tokens: list[int] = []
        at = 0
        while at < len(raw):
            length = min(self._longest.get(raw[at : at + 2], 1), len(raw) - at)
            while raw[at : at + length] not in self._ids:
                length -= 1
            tokens.append(self._ids[raw[at : at + length]])
            at += length
        return tokens


def read_vocabulary(path: Path) -> list[bytes]:
    """Bytes of every id, b"" for ids without a token (id 0).

    Source: one token per line, `<id> <Python literal> <byte length>`.

    Raises:
        TokenizerError: the file is missing or malformed, or lacks a single byte, so that not
            every text could be encoded.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"vocabulary {path} cannot be read: {error}") from None
    table: dict[int, bytes] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        first, last = line.find(" "), line.rstrip().rfind(" ")
        try:
            token_id, token = int(line[:first]), _literal(line[first + 1 : last].strip())
            if len(token) != int(line[last:]) or not token or not 0 < token_id < 1 << 24:
                raise ValueError
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise TokenizerError(
                f"vocabulary {path}, line {number}: {line[:60]!r} is not `id 'token' length`: not "
                "a World vocabulary"
            ) from None
        if token_id in table:
            raise TokenizerError(f"vocabulary {path}, line {number}: id {token_id} appears twice")
        table[token_id] = token
    missing = {bytes([byte]) for byte in range(256)} - set(table.values())
    if missing or max(table) > 2 * len(table):
        raise TokenizerError(
            f"vocabulary {path}: {len(missing)} single bytes are missing or ids are far apart: "
            "not a World vocabulary"
        )
    return [table.get(token_id, b"") for token_id in range(max(table) + 1)]


def _literal(source: str) -> bytes:
    """Bytes of a str or bytes literal; most have no escapes and need no parser."""
    quote = source[:1]
    if quote in ("'", '"') and "\\" not in source and source.count(quote) == 2:
        if source[-1] != quote:
            raise ValueError
        return source[1:-1].encode("utf-8")
    value = ast.literal_eval(source)
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bytes):
        return value
    raise ValueError
