"""The recurrences of RWKV-4 and RWKV-5 as convolutions: oracles that do not walk along the tokens.

Their decays do not depend on the token, so that what a state holds is a causal convolution of the
keys and values with `e^(w t)`, and a Fourier transform can do all tokens at once. Later versions
have decays that depend on the data, and no such form. Source: RWKV (arXiv 2305.13048), equation of
WKV; Eagle and Finch (arXiv 2404.05892), equation of Eagle's WKV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.errors import MeasureError
from kernelforge.family import Arrays
from kernelforge.traits.segments import filled_segments
from kernelforge_runtime.abi.problem import Problem

WIDEST = 20.0
"""Keys of one channel may be this far apart. A transform's error is relative to the largest
`e^k` of the segment, and the sums that it must not disturb may be as small as the smallest."""
_AT_ONCE = 1 << 22
"""Elements that are convolved at once: a head's matrices times its tokens may be many."""

Convolve = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""(x [.., T], g [.., T]) -> [.., T], the sum over i <= t of g[t - i] x[i]; g is broadcast."""


def numpy_convolve(x: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
    """In float64."""
    tokens = x.shape[-1]
    size = transform_size(tokens)
    product = np.fft.rfft(x, size) * np.fft.rfft(g, size)
    return np.fft.irfft(product, size)[..., :tokens]


def transform_size(tokens: int) -> int:
    """The power of two at which the end of a convolution does not run into its beginning."""
    return 1 << max(1, (2 * tokens - 1).bit_length())


def wkv4_by_fft(
    problem: Problem,
    given: Mapping[str, NDArray[Any]],
    convolve: Convolve = numpy_convolve,
) -> Arrays:
    """RWKV-4's: numerator and denominator are two convolutions of each channel.

    Args:
        problem: T, C, B, P as of the family wkv4.
        given: its arrays.
        convolve: how; may be of less precision.

    Returns:
        `out_y` and `state`, as of the family's oracle; exponentials stand relative to the largest,
        so that none overflows.

    Raises:
        MeasureError: keys are too far apart.
    """
    r, k, v = np.split(given["in_p"][:, : 3 * problem["C"]].astype(np.float64), 3, axis=1)
    w, u = given["param"].astype(np.float64)[:, :, None]
    states = given["state"].astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        rows = slice(first, first + count)
        keys, values = k[rows].T, v[rows].T
        most = keys.max(axis=1, keepdims=True)
        if (apart := float((most - keys.min(axis=1, keepdims=True)).max())) > WIDEST:
            raise MeasureError(
                f"keys of a channel are {apart:.0f} apart: transforms are exact up to {WIDEST:.0f}"
            )
        n, d, p = states[slot][:, :, None]
        steps = np.arange(count)
        weights = np.exp(keys - most)
        sums = convolve(np.stack([weights * values, weights]), np.exp(w * steps))
        before = np.concatenate([np.zeros((*sums.shape[:2], 1)), sums[..., :-1]], axis=-1)
        top = np.maximum(np.maximum(most, p + w * steps), u + keys)
        scale, start, now = np.exp(most - top), np.exp(p + w * steps - top), np.exp(u + keys - top)
        above = scale * before[0] + start * n + now * values
        below = scale * before[1] + start * d + now
        out[rows] = r[rows] * (above / below).T
        last = np.maximum(p + w * count, (keys + w * (count - 1 - steps)).max(1, keepdims=True))
        scale, start = np.exp(most - last), np.exp(p + w * count - last)
        ends = [scale * sums[i, :, -1:] + start * old for i, old in enumerate((n, d))]
        states[slot] = np.concatenate([*ends, last], axis=1).T
    return {"out_y": out, "state": states}


def wkv5_by_fft(
    problem: Problem,
    given: Mapping[str, NDArray[Any]],
    convolve: Convolve = numpy_convolve,
) -> Arrays:
    """RWKV-5's: one convolution of each element of a head's matrix.

    Args:
        problem: T, H, N, B, P as of the family wkv6, and D=1: decays of all tokens.
        given: its arrays.
        convolve: how; may be of less precision.

    Returns:
        `out_y` and `state`, as of the family's oracle.

    Raises:
        MeasureError: decays depend on the token.
    """
    t, h, n = (problem[name] for name in "THN")
    if problem["D"] != 1:
        raise MeasureError(f"decays of each token (D={problem['D']}) are no convolution: D=1 is")
    vectors = given["in_p"][:, : 3 * h * n].astype(np.float64).reshape(t, 3, h, n)
    rates = -np.exp(given["decay"].astype(np.float64)[0])
    bonus = given["bonus"].astype(np.float64)
    states = given["state"].astype(np.float64)
    out = given["out_y"].astype(np.float64)
    for _, first, count, slot in filled_segments(given["segment"]):
        steps = np.arange(count)
        at_once = max(1, _AT_ONCE // (n * count))
        for head in range(h):
            r, k, v = (vectors[first : first + count, i, head].T for i in range(3))
            decay = np.exp(rates[head][:, None] * np.arange(count + 1))
            own = (bonus[head][:, None] * k * r).sum(0)
            for begin in range(0, n, at_once):
                part = slice(begin, begin + at_once)
                sums = convolve(v[part, None] * k[None], decay[:, :count])
                old = states[slot, head, part]
                before = old[:, :, None] * decay[:, steps]
                before[..., 1:] += sums[..., :-1]
                y = np.einsum("jt,ijt->ti", r, before) + (own * v[part]).T
                out[first : first + count, head, part] = y
                states[slot, head, part] = old * decay[:, count] + sums[..., -1]
    return {"out_y": out, "state": states}
