"""Finds the vocabulary that a model was trained on.

Three kinds: the World vocabulary (through `pyrwkv_tokenizer`), a Hugging Face `tokenizer.json`
(through `tokenizers`, an extra), and plain bytes for tiny models. The libraries are imported when
a vocabulary is loaded. Partial characters while streaming are `text.stream`'s business.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from kernelforge_runtime.errors import TokenizerError
from kernelforge_runtime.text.hugging_face import HuggingFaceTokenizer
from kernelforge_runtime.text.tokenizer import BYTE_IDS, ByteTokenizer, Tokenizer
from kernelforge_runtime.text.world import WorldTokenizer

WORLD_IDS: Final = 65_530
"""Ids of the World vocabulary: 0 ends a document, 1 to 65529 are tokens."""
_WORLD_PADDED: Final = 65_536


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
        if vocab_size < BYTE_IDS:
            raise TokenizerError(
                f"tokenizer bytes needs {BYTE_IDS} ids, the model has {vocab_size}: pass the "
                "model's own vocabulary"
            )
        return ByteTokenizer()
    path = Path(kind)
    if kind == "world" or path.suffix == ".txt":
        return WorldTokenizer(None if kind == "world" else path, vocab_size)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path, vocab_size)
    raise TokenizerError(
        f"tokenizer {kind!r} is not known: pass auto, world, bytes, or the path of a "
        "tokenizer.json or a World vocabulary .txt"
    )


def _kind_for(vocab_size: int) -> str:
    if vocab_size == BYTE_IDS:
        return "bytes"
    if WORLD_IDS <= vocab_size <= _WORLD_PADDED:
        return "world"
    raise TokenizerError(
        f"no built-in tokenizer has {vocab_size} ids (256 is bytes, 65536 is World): pass the "
        "model's tokenizer.json, for Pile models 20B_tokenizer.json"
    )
