"""Vocabularies in Hugging Face's `tokenizer.json` form, through the `tokenizers` package.

RWKV's Pile models use one (`20B_tokenizer.json`). Nothing is downloaded: the file is passed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kernelforge_runtime.errors import TokenizerError
from kernelforge_runtime.text.tokenizer import check_ids, require, utf8

_END_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")


class HuggingFaceTokenizer:
    """A `tokenizer.json`; see `Tokenizer` for the attributes.

    A byte-level vocabulary decodes to the exact bytes of each token. Any other kind decodes
    whole sequences to text, which is why `is_bytewise` is False for it.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Loads the vocabulary.

        Raises:
            TokenizerError: package or file missing, a malformed file, or more ids than rows.
        """
        library = require("tokenizers", "kernelforge[hf]")
        self.name = str(path)
        self.vocab_size = vocab_size
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise TokenizerError(f"tokenizer {path} cannot be read: {error}") from None
        try:
            self._inner = library.Tokenizer.from_str(source)
            decoder = json.loads(source).get("decoder") or {}
        except Exception as error:  # the library raises bare Exception
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TokenizerError(f"tokenizer {path} is no tokenizer.json: {line}") from None
        names = {i: name for name, i in self._inner.get_vocab(with_added_tokens=True).items()}
        if names and max(names) >= vocab_size:
            raise TokenizerError(
                f"tokenizer {path} has ids up to {max(names)}, the model {vocab_size} rows: pass "
                "the model's own tokenizer.json"
            )
        self.end_token: int | None = next(
            (i for n in _END_NAMES if (i := self._inner.token_to_id(n)) is not None), None
        )
        self.is_bytewise = decoder.get("type") == "ByteLevel"
        added = {i: token.content for i, token in self._inner.get_added_tokens_decoder().items()}
        self._table: dict[int, bytes] = {}
        if self.is_bytewise:
            alphabet = _byte_alphabet()
            for token_id, name in names.items():
                if token_id in added:
                    self._table[token_id] = added[token_id].encode()
                else:
                    self._table[token_id] = b"".join(
                        alphabet.get(char, char.encode()) for char in name
                    )

    def encode(self, text: str | bytes) -> list[int]:
        """Ids of a text; it must be UTF-8, since these vocabularies work on characters."""
        try:
            string = utf8(text).decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"tokenizer {self.name}: byte {error.start} of the text is not UTF-8: pass text"
            ) from None
        return list(self._inner.encode(string, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The tokens' bytes; rows that pad the model's table give none."""
        check_ids(tokens, self.vocab_size, self.name)
        if self.is_bytewise:
            return b"".join(self._table.get(token, b"") for token in tokens)
        text = self._inner.decode(list(tokens), skip_special_tokens=False)
        return str(text).encode("utf-8")


def _byte_alphabet() -> dict[str, bytes]:
    """Character -> byte of the byte-level alphabet.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the
    characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + place): bytes([byte]) for place, byte in enumerate(rest)})
    return alphabet
