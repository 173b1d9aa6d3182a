"""RWKV-7 and ROSA written down once more: whole sequences in float64, slow, nothing shared.

Follows the definitions and not the model files, so that a mistake there shows. Every function takes
the weights of one layer by their short names.
"""

import numpy as np


def weights_of(read, begins):
    """Tensors whose names begin like this, by the rest of their names; vectors are [C]."""
    found = {}
    for name in read:
        if name.startswith(begins):
            values = read[name].astype(np.float64)
            found[name.removeprefix(begins)] = values.reshape(-1) if values.ndim == 3 else values
    return found


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def before(x):
    return np.concatenate([np.zeros((1, x.shape[1])), x[:-1]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def time_mix(w, x, v_first, eps=64e-5):
    """(what is added to x, the first layer's values) of the normed input [T, C]."""
    heads, size = w["r_k"].shape
    delta = before(x) - x
    mixed = {c: x + delta * w[f"x_{c}"] for c in "rwkvag"}
    r, k, v = (
        mixed[c] @ w[f"{n}.weight"].T
        for c, n in zip("rkv", ("receptance", "key", "value"), strict=True)
    )
    decay = np.exp(-np.exp(-0.5) * sigmoid(w["w0"] + np.tanh(mixed["w"] @ w["w1"]) @ w["w2"]))
    a = sigmoid(w["a0"] + mixed["a"] @ w["a1"] @ w["a2"])
    gate = sigmoid(mixed["g"] @ w["g1"]) @ w["g2"]
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(w["v0"] + mixed["v"] @ w["v1"] @ w["v2"])
    direction = (k * w["k_k"]).reshape(-1, heads, size)
    direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * w["k_a"])
    out = np.zeros_like(x)
    state = np.zeros((heads, size, size))  # [value][key]
    split = [z.reshape(-1, heads, size) for z in (r, decay, k, v, a)]
    for t, (rt, dt, kt, vt, at) in enumerate(zip(*split, strict=True)):
        for h in range(heads):
            kk, s = direction[t, h], state[h]
            s[:] = s * dt[h] - np.outer(s @ kk, kk * at[h]) + np.outer(vt[h], kt[h])
            y = s @ rt[h]
            here = slice(h * size, (h + 1) * size)
            y = layer_norm(y, w["ln_x.weight"][here], w["ln_x.bias"][here], eps)
            out[t, here] = y + (rt[h] * kt[h] * w["r_k"][h]).sum() * vt[h]
    return (out * gate) @ w["output.weight"].T, v_first


def channel_keys(w, x):
    return np.maximum((x + (before(x) - x) * w["x_k"]) @ w["key.weight"].T, 0) ** 2


def channel_mix(w, x):
    return channel_keys(w, x) @ w["value.weight"].T


def followed(q, k, v):
    """What followed the longest, latest match of every token's suffix; None without a match."""
    found = []
    for i in range(len(q)):
        best, answer = 0, None
        for end in range(i):
            length = 0
            while length <= end and q[i - length] == k[end - length]:
                length += 1
            if length and length >= best:
                best, answer = length, v[end + 1]
        found.append(answer)
    return found


def symbols(x, bits):
    """[T, C] to [C / bits] streams of numbers."""
    signs = (x > 0).reshape(len(x), -1, bits)
    return (signs * (1 << np.arange(bits))).sum(-1).T.tolist()


def rosa(q, k, v, bits, is_set, clear, unmatched):
    """[T, C]: a value for every bit of what followed."""
    out = np.empty(q.shape)
    for g, streams in enumerate(
        zip(symbols(q, bits), symbols(k, bits), symbols(v, bits), strict=True)
    ):
        for t, symbol in enumerate(followed(*streams)):
            for b in range(bits):
                c = g * bits + b
                if symbol is None:
                    out[t, c] = unmatched[c]
                else:
                    out[t, c] = (is_set if symbol >> b & 1 else clear)[c]
    return out


def rosa_qkv(w, x, bits):
    """The layer with queries, keys and values of their own."""
    delta = before(x) - x
    q, k, v = ((x + delta * w[f"x_{c}"]) @ w[f"{c}.weight"].T + w[f"{c}.bias"] for c in "qkv")
    e = w["rosa_qkv.emb"]
    y = rosa(q, k, v, bits, e, -e, -e if bits == 1 else 0 * e)
    return y @ w["o.weight"].T + w["o.bias"]
