"""ROSA in NumPy: packs histories, finds the longest repeated suffix, reads what followed it.

Histories are those of one sequence, u32 [roles, streams, words], packed as in `abi.rosa`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge_runtime.abi.rosa import NO_MATCH, WORD_BITS, symbols_per_word

PAIRS = 1 << 20
"""(stream, lag) pairs looked at together: bounds the memory at about 50 MB."""

Words = NDArray[np.uint32]


def pack(history: Words, x: NDArray[Any], bits: int, position: int) -> None:
    """Appends the symbols of some tokens to a history, in place.

    Earlier symbols stay; bits above the newest symbol of a touched word become zero.

    Args:
        history: u32 [roles, streams, words].
        x: float32 [tokens, roles, streams, bits], where a value above zero is a set bit and the
            lowest channel is the lowest bit; or the symbols themselves, u32 [tokens, roles,
            streams].
        bits: of a symbol.
        position: tokens that the history holds already.
    """
    per = symbols_per_word(bits)
    tokens, roles, streams = x.shape[:3]
    if not tokens:
        return
    first, before = divmod(position, per)
    touched = -(-(before + tokens) // per)
    symbols = np.zeros((roles, streams, touched * per), np.uint32)
    symbols[:, :, before : before + tokens] = np.moveaxis(_symbols(x, bits), 0, 2)
    shifts = np.arange(per, dtype=np.uint32) * np.uint32(bits)
    added = np.bitwise_or.reduce(symbols.reshape(roles, streams, touched, per) << shifts, axis=3)
    added[:, :, 0] |= history[:, :, first] & np.uint32((1 << before * bits) - 1)
    history[:, :, first : first + touched] = added


def match(history: Words, bits: int, position: int, count: int) -> Words:
    """The symbol that followed the longest repeated suffix, for each of some tokens.

    For token i the ends e < i compete: the longest common suffix of q_0..q_i and k_0..k_e wins,
    the latest of equals; the answer is v_(e+1). Exact at any length.

    Args:
        history: u32 [roles, streams, words], which already holds these tokens.
        bits: of a symbol.
        position: of the first token.
        count: tokens.

    Returns:
        u32 [count, streams], NO_MATCH where no end matches.
    """
    out = np.full((count, history.shape[1]), NO_MATCH, np.uint32)
    group = max(1, PAIRS // max(1, position + count))
    for first in range(0, history.shape[1], group):
        streams = slice(first, first + group)
        out[:, streams] = _match(history[:, streams], bits, position, count)
    return out


def read(symbols: Words, values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """What each channel gets for a symbol.

    Args:
        symbols: u32 [tokens, streams].
        values: float32 [3, streams, bits], of a set bit, of a clear bit and of no match.
        bits: of a symbol.

    Returns:
        float32 [tokens, streams, bits].
    """
    is_set = symbols[:, :, None] >> np.arange(bits, dtype=np.uint32) & np.uint32(1) > 0
    matched = (symbols != NO_MATCH)[:, :, None]
    return np.asarray(np.where(matched, np.where(is_set, values[0], values[1]), values[2]))


def unpack(stream_words: Words, bits: int, tokens: int) -> Words:
    """The first symbols of packed streams: u32 [..., tokens] of u32 [..., words]."""
    shifts = np.arange(symbols_per_word(bits), dtype=np.uint32) * np.uint32(bits)
    mask = np.uint32((1 << bits) - 1)
    symbols = stream_words[..., None] >> shifts & mask
    return symbols.reshape(*stream_words.shape[:-1], -1)[..., :tokens]


def _symbols(x: NDArray[Any], bits: int) -> Words:
    if x.ndim == 3:
        return x.astype(np.uint32) & np.uint32((1 << bits) - 1)
    weights = np.uint32(1) << np.arange(bits, dtype=np.uint32)
    return np.asarray(np.bitwise_or.reduce(np.where(x > 0, weights, np.uint32(0)), axis=3))


def _match(history: Words, bits: int, position: int, count: int) -> Words:
    q_words, k_words, v_words = history if len(history) == 3 else (history[0],) * 3
    total = position + count
    q, v = unpack(q_words, bits, total), unpack(v_words, bits, total)
    # Backwards, so that the ends i-1, i-2 .. 0 of a token are one contiguous piece.
    k_backwards = np.ascontiguousarray(unpack(k_words, bits, total)[:, ::-1])
    runs = np.zeros((len(q), total), np.uint32)  # column d - 1: of the pairs (i, i - d)
    if position:
        runs[:, : position - 1] = _suffixes(q_words, k_words, bits, position - 1)
    out = np.full((count, len(q)), NO_MATCH, np.uint32)
    stream = np.arange(len(q))
    for i in range(max(position, 1), total):
        run = runs[:, :i]
        run += 1
        run *= q[:, i, None] == k_backwards[:, total - i :]
        lag = run.argmax(axis=1)  # the first of equals is the latest end
        found = run[stream, lag] > 0
        out[i - position] = np.where(found, v[stream, i - lag], np.uint32(NO_MATCH))
    return out


def _suffixes(q_words: Words, k_words: Words, bits: int, last: int) -> Words:
    """Common suffixes of q_0..q_last with k_0..k_e for e = last-1 down to 0: u32 [streams, last].

    Whole words at a time, so that streams that repeat for long are not slow.
    """
    per = symbols_per_word(bits)
    q, k = _windows(q_words, bits), _windows(k_words, bits)
    within = np.arange(1, last + 1, dtype=np.uint32)
    runs = np.minimum(_agreeing(q[:, last, None] ^ k[:, :last], bits), within)
    stream, end = np.nonzero((runs == per) & (within > per))
    while len(stream):
        run = runs[stream, end]
        left = within[end] - run
        differ = q[stream, last - run] ^ k[stream, left - 1]
        more = np.minimum(_agreeing(differ, bits), left)
        runs[stream, end] += more
        longer = (more == per) & (left > per)
        stream, end = stream[longer], end[longer]
    return runs[:, ::-1]


def _agreeing(differ: Words, bits: int) -> Words:
    """Symbols that agree, from the highest bits down, where windows differ in these bits."""
    # The exponent of frexp is the number of significant bits; float64 holds 32 exactly.
    significant = np.frexp(differ.astype(np.float64))[1]
    return ((WORD_BITS - significant) // bits).astype(np.uint32)


def _windows(stream_words: Words, bits: int) -> Words:
    """The 32 bits up to and with each symbol, which takes the highest: [streams, symbols]."""
    high = stream_words.astype(np.uint64)
    low = np.zeros_like(high)
    low[:, 1:] = high[:, :-1]
    used = np.arange(1, symbols_per_word(bits) + 1, dtype=np.uint64) * np.uint64(bits)
    windows = (high << np.uint64(WORD_BITS) | low)[..., None] >> used
    return windows.astype(np.uint32).reshape(len(high), -1)
