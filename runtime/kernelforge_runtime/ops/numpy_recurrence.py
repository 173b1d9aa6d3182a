"""The recurrences of RWKV-4 to 7 in NumPy, token by token; states change in place.

Sources: RWKV (arXiv 2305.13048) for RWKV-4, Eagle and Finch (arXiv 2404.05892) for 5 and 6, RWKV-7
"Goose" (arXiv 2503.14456).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def wkv4(r: Array, k: Array, v: Array, param: Array, state: Array) -> Array:
    """R wkv, [T, C]. The sums are kept divided by e^exponent, so that no exp overflows.

    Args:
        r: [T, C], k and v likewise.
        k: see r.
        v: see r.
        param: [2, C]: w = -exp(time_decay), u = time_first.
        state: [3, C]: numerator, denominator, exponent.
    """
    w, u = param
    num, den, top = state
    out = np.empty_like(v)
    for t in range(len(v)):
        with_bonus = u + k[t]
        high = np.maximum(top, with_bonus)
        old, new = np.exp(top - high), np.exp(with_bonus - high)
        out[t] = r[t] * (old * num + new * v[t]) / (old * den + new)
        high = np.maximum(top + w, k[t])
        old, new = np.exp(top + w - high), np.exp(k[t] - high)
        num[...] = old * num + new * v[t]
        den[...] = old * den + new
        top[...] = high
    return out


def wkv6(r: Array, k: Array, v: Array, w: Array, bonus: Array, state: Array) -> Array:
    """RWKV-5 and 6: read before the update, [T, H, N].

    Args:
        r: [T, H, N], k and v likewise.
        k: see r.
        v: see r.
        w: decay factors, [T, H, N], or [1, H, N] for all tokens.
        bonus: u, [H, N].
        state: [H, N, N], [value][key].
    """
    out = np.empty_like(v)
    for t in range(len(v)):
        read = (state @ r[t][:, :, None])[..., 0]
        out[t] = read + (r[t] * bonus * k[t]).sum(-1, keepdims=True) * v[t]
        state *= w[min(t, len(w) - 1)][:, None, :]
        state += v[t][:, :, None] * k[t][:, None, :]
    return out


def wkv7(s: Array, state: Array) -> Array:
    """RWKV-7: read after the update, [T, H, N].

    Args:
        s: [6, T, H, N]: r, w, k, v, a, b.
        state: [H, N, N], [value][key].
    """
    r, w, k, v, a, b = s
    out: Array = np.empty_like(r)
    for t in range(len(r)):
        sa = (state @ a[t][:, :, None])[..., 0]
        state *= w[t][:, None, :]
        state += sa[:, :, None] * b[t][:, None, :]
        state += v[t][:, :, None] * k[t][:, None, :]
        out[t] = (state @ r[t][:, :, None])[..., 0]
    return out
