"""RWKV-7's time mix between its projections and its output matrix, in float64.

Three steps, each the oracle of a family of its own, and together that of the one which does all.

Source: RWKV-7 "Goose" with Expressive Dynamic State Evolution (arXiv 2503.14456), time mixing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernelforge.traits.segments import filled_segments

Array = NDArray[Any]


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def gates(
    proj: Array, lora: Array, param: Array, v_first: Array, first: bool
) -> tuple[Array, Array]:
    """Decay, rate, value mix and key changes: (r, w, k, v, a, b [6, T, H, N], v_first [T, H, N]).

    Args:
        proj: [T, P]: r, k, v in its first 3 H N columns.
        lora: [T, 4, H, N]: w, a, v, g.
        param: [5, H, N]: w0, a0, v0, k_k, k_a.
        v_first: [T, H, N], what the first layer stored; not read in it.
        first: whether this is the first layer.
    """
    t, _, h, n = lora.shape
    r, k, v = proj[:, : 3 * h * n].astype(np.float64).reshape(t, 3, h, n).swapaxes(0, 1)
    lora_w, lora_a, lora_v, _ = lora.astype(np.float64).swapaxes(0, 1)
    w0, a0, v0, k_k, k_a = param.astype(np.float64)
    v_first = v_first.astype(np.float64)
    w = np.exp(-np.exp(-0.5) * _sigmoid(w0 + lora_w))
    a = _sigmoid(a0 + lora_a)
    if first:
        v_first = v
    else:
        v = v + (v_first - v) * _sigmoid(v0 + lora_v)
    kk = k * k_k
    kk /= np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * k_a)
    return np.stack([r, w, k, v, -kk, kk * a]), v_first


def recurrence(s: Array, state: Array, segment: Array, out: Array) -> tuple[Array, Array]:
    """The state's update as outer products, segment by segment, token by token: (out, state).

    Args:
        s: [6, T, H, N]: r, w, k, v, a, b.
        state: [B, H, N, N], [value][key]; row `slot` is a segment's.
        segment: [B, 4]; see `kernelforge.traits.segments`.
        out: [T, H, N]; tokens without a segment keep what it holds.
    """
    r, w, k, v, a, b = s.astype(np.float64)
    states, out = state.astype(np.float64), out.astype(np.float64)
    for _, first, count, slot in filled_segments(segment):
        for t in range(first, first + count):
            before = states[slot]
            sa = (before * a[t, :, None, :]).sum(-1)
            states[slot] = after = (
                before * w[t, :, None, :]
                + sa[:, :, None] * b[t, :, None, :]
                + v[t, :, :, None] * k[t, :, None, :]
            )
            out[t] = (after * r[t, :, None, :]).sum(-1)
    return out, states


def readout(y: Array, s: Array, lora: Array, param: Array, eps: float) -> Array:
    """Group norm per head, plus the bonus of the current token, times the gate: [T, H, N].

    Args:
        y: [T, H, N], of the recurrence.
        s: [6, T, H, N]: r, k, v in planes 0, 2, 3.
        lora: [T, 4, H, N]: the gate last.
        param: [3, H, N]: r_k, then weight and bias of the norm.
        eps: of the norm.
    """
    y = y.astype(np.float64)
    r, k, v = (s[i].astype(np.float64) for i in (0, 2, 3))
    r_k, weight, bias = param.astype(np.float64)
    centred = y - y.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    bonus = (r * k * r_k).sum(-1, keepdims=True)
    return np.asarray((normed * weight + bias + bonus * v) * lora[:, 3].astype(np.float64))
