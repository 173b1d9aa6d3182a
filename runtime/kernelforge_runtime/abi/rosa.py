"""How ROSA's history is packed: the arithmetic on which kernels, ops and saved states agree.

A history is u32 [roles, streams, words]; roles is 1 (query, key and value are one stream) or 3.
Symbol i of a stream occupies `bits` bits of word `i * bits // 32`, newer symbols the higher bits.
The bits above the newest symbol of its word are zero.
"""

from __future__ import annotations

from kernelforge_runtime.errors import PlanError

WORD_BITS = 32
SYMBOL_BITS = (1, 4, 32)
"""Bits that a symbol may have: one channel, four channels, or a whole token id."""
NO_MATCH = 0xFFFFFFFF
"""The answer where no earlier end matches. A 32-bit symbol must not have this value."""


def symbols_per_word(bits: int) -> int:
    """Symbols that share a word.

    Raises:
        PlanError: symbols of that many bits are not provided for.
    """
    if bits not in SYMBOL_BITS:
        raise PlanError(f"ROSA symbols of {bits} bits: use one of {SYMBOL_BITS}")
    return WORD_BITS // bits


def words(tokens: int, bits: int) -> int:
    """Words that the history of one stream over this many tokens takes."""
    return -(-tokens // symbols_per_word(bits))
