"""Streams of symbols for ROSA's tests, and what the suffix automaton answers for them."""

import json
from functools import cache

import numpy as np

from kernelforge.traits.suffix_automaton import rosa
from kernelforge_runtime.abi.rosa import NO_MATCH, words
from kernelforge_runtime.ops.numpy_rosa import pack

KINDS = ("even", "rare", "periodic", "constant", "de_bruijn", "followed")


@cache
def de_bruijn(symbols, length):
    """A sequence that begins with every string of some length once.

    Source: H. Fredricksen, J. Maiorana, Necklaces of beads in k colors and k-ary de Bruijn
    sequences (1978): the Lyndon words in order.
    """
    order = 1
    while symbols**order < length:
        order += 1
    sequence, word = [], [-1]
    while word and len(sequence) < length:
        word[-1] += 1
        if order % len(word) == 0:
            sequence += word
        word = (word * order)[:order]
        while word and word[-1] == symbols - 1:
            word.pop()
    return np.array(sequence[:length], np.uint32)


def draw(kind, roles, count, length, bits, rng):
    """u32 [roles, count, length].

    even and rare: random bits, half or a fiftieth of them set; periodic: each stream with a period
    of its own, the roles out of step; de_bruijn: rotated; followed: the queries are the keys, late
    and with mistakes.
    """
    shape = (roles, count, length)
    top = 2 ** min(bits, 4)
    if kind in ("even", "rare"):
        chance = 0.5 if kind == "even" else 0.02
        planes = rng.random((*shape, min(bits, 4))) < chance
        return (planes << np.arange(planes.shape[-1])).sum(-1).astype(np.uint32)
    if kind == "constant":
        same = rng.random((1, count, 1)) < 0.7
        symbols = rng.integers(0, top, (roles, count, 1))
        return np.broadcast_to(np.where(same, symbols[:1], symbols), shape).astype(np.uint32)
    at = np.arange(length)
    if kind == "periodic":
        period = rng.integers(1, min(length, 200) + 1, (1, count, 1))
        pattern = rng.integers(0, top, (count, 200)).astype(np.uint32)
        step = rng.integers(0, 200, (roles, count, 1))
        return np.take_along_axis(np.stack([pattern] * roles), (at + step) % period, axis=2)
    if kind == "de_bruijn":
        return de_bruijn(top, length)[(at + rng.integers(0, length, (roles, count, 1))) % length]
    streams = rng.integers(0, top, shape).astype(np.uint32)
    late = int(rng.integers(1, 40))
    streams[0, :, late:] = streams[-1, :, :-late] if late < length else streams[0, :, late:]
    wrong = rng.random(shape[1:]) < 0.01
    streams[0][wrong] = rng.integers(0, top, int(wrong.sum()))
    return streams


def answers(streams):
    """u32 [length, count]: the automaton's for streams [roles, count, length]."""
    roles = [streams[min(role, len(streams) - 1)].tolist() for role in range(3)]
    return np.array([rosa(*one) for one in zip(*roles, strict=True)], np.uint32).T


def packed(streams, bits):
    """The history [roles, count, words] of whole streams, without a word to spare.

    The bits that no symbol takes are set, so that nothing may rest on them.
    """
    roles, count, length = streams.shape
    history = np.zeros((roles, count, words(length, bits)), np.uint32)
    pack(history, np.moveaxis(streams, 2, 0), bits, 0)
    used = length * bits % 32
    if used:
        history[:, :, -1] |= np.uint32(0xFFFFFFFF << used & 0xFFFFFFFF)
    return history


def vectors(folder):
    """(streams [roles, 1, length], bits, answers [length, 1]) of every recorded case."""
    recorded = json.loads((folder / "rosa_vectors.json").read_text())
    cases = [([c["x"]], c["y"]) for c in recorded["rosa"]]
    cases += [([c["q"], c["k"], c["v"]], c["out"]) for c in recorded["qkv"]]
    for roles, out in cases:
        streams = np.array(roles, np.uint32)[:, None]
        bits = next(b for b in (1, 4, 32) if streams.max() < 2**b)
        wanted = np.array([NO_MATCH if y < 0 else y for y in out], np.uint32)[:, None]
        yield streams, bits, wanted
