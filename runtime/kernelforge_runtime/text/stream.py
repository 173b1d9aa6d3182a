"""Turns tokens into text while they arrive, never showing half a character."""

from __future__ import annotations

import codecs

from kernelforge_runtime.text.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_LONGEST_CHARACTER = 4


class StreamDecoder:
    """Text of a growing token sequence; one per sequence.

    The pieces from `push` and the one from `flush` add up to the sequence's whole text. Bytes
    that can never become UTF-8 turn into U+FFFD as soon as that is certain.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes; "" while a character is unfinished.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        if self._tokenizer.is_bytewise:
            return self._utf8.decode(self._tokenizer.decode([token]))
        self._waiting.append(token)
        piece = self._new_text()
        if not piece or (piece.endswith(_UNKNOWN) and len(self._waiting) < _LONGEST_CHARACTER):
            return ""
        self._shown, self._waiting = self._waiting, []
        return piece

    def flush(self) -> str:
        """What is left at the end, U+FFFD for an unfinished character; starts afresh."""
        piece = self._utf8.decode(b"", final=True)
        if self._waiting:
            piece += self._new_text()
        self._utf8.reset()
        self._shown, self._waiting = [], []
        return piece

    def _new_text(self) -> str:
        """Text of the waiting tokens, which may depend on the tokens right before them."""
        before = self._tokenizer.decode(self._shown).decode("utf-8", "replace")
        both = self._tokenizer.decode(self._shown + self._waiting).decode("utf-8", "replace")
        return both[len(before) :]
