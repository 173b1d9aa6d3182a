"""RWKV-5.2, 6 and 7 token by token from their published equations, in plain NumPy float64.

Written for one purpose: states lie here as the published code keeps them, S[key][value] in
RWKV-5 and 6 and S[value][key] in RWKV-7, so that what a state file's axes mean can be tested.

Sources: Eagle and Finch (arXiv 2404.05892), RWKV-7 "Goose" (arXiv 2503.14456).
"""

import numpy as np

GROUP_NORM_EPS = 64e-5


class Layer:
    """One block: its weights in float64 without axes of one, and its state."""

    def __init__(self, weights, index, state):
        prefix = f"blocks.{index}."
        self.weights = {
            n.removeprefix(prefix): np.squeeze(a).astype(np.float64)
            for n, a in weights.items()
            if n.startswith(prefix)
        }
        self.index, self.state = index, state
        self.before = {"att": 0.0, "ffn": 0.0}

    def __getitem__(self, name):
        return self.weights[name]

    @property
    def heads(self):
        return self.state.shape[:2]


def forward(weights, tokens, layers, time_mix):
    """Logits of every token, [T, V]; the layers' states move on."""
    top = {n: a.astype(np.float64) for n, a in weights.items() if ".att." not in n}
    rows = []
    for token in tokens:
        x = norm(top, "blocks.0.ln0", top["emb.weight"][token])
        v_first = None
        for layer in layers:
            normed = norm(layer, "ln1", x)
            out, v_first = time_mix(layer, normed, layer.before["att"], v_first)
            layer.before["att"] = normed
            x = x + out
            normed = norm(layer, "ln2", x)
            x = x + channel_mix(layer, normed, layer.before["ffn"])
            layer.before["ffn"] = normed
        rows.append(top["head.weight"] @ norm(top, "ln_out", x))
    return np.stack(rows)


def norm(weights, name, x, eps=1e-5):
    """Layer norm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    shape = x.shape
    return centred / scale * weights[f"{name}.weight"].reshape(shape) + weights[
        f"{name}.bias"
    ].reshape(shape)


def channel_mix(layer, x, before):
    """All three: `time_mix` weighs the token, `time_maa` and `x_k` the one before."""
    if "ffn.x_k" in layer.weights:
        k = layer["ffn.key.weight"] @ (x + (before - x) * layer["ffn.x_k"])
        return layer["ffn.value.weight"] @ np.maximum(k, 0) ** 2
    if "ffn.time_mix_k" in layer.weights:
        k, r = (mixed(x, before, layer[f"ffn.time_mix_{c}"]) for c in "kr")
    else:
        k, r = (x + (before - x) * layer[f"ffn.time_maa_{c}"] for c in "kr")
    hidden = np.maximum(layer["ffn.key.weight"] @ k, 0) ** 2
    return sigmoid(layer["ffn.receptance.weight"] @ r) * (layer["ffn.value.weight"] @ hidden)


def eagle(layer, x, before, v_first):
    """RWKV-5.2's time mix."""
    given = {c: mixed(x, before, layer[f"att.time_mix_{c}"]) for c in "rkvg"}
    decay = layer["att.time_decay"]
    return read_before_update(layer, given, decay), v_first


def finch(layer, x, before, v_first):
    """RWKV-6's time mix."""
    d = before - x
    inner = np.tanh((x + d * layer["att.time_maa_x"]) @ layer["att.time_maa_w1"]).reshape(5, -1)
    given = {
        c: x + d * (layer[f"att.time_maa_{c}"] + inner[i] @ layer["att.time_maa_w2"][i])
        for i, c in enumerate("wkvrg")
    }
    low = np.tanh(given["w"] @ layer["att.time_decay_w1"]) @ layer["att.time_decay_w2"]
    return read_before_update(layer, given, layer["att.time_decay"] + low), v_first


def read_before_update(layer, given, decay):
    """y[j] = sum_i r[i] (u[i] k[i] v[j] + S[i][j]); S[i][j] = w[i] S[i][j] + k[i] v[j]."""
    r, k, v = (
        (layer[f"att.{name}.weight"] @ given[name[0]]).reshape(layer.heads)
        for name in ("receptance", "key", "value")
    )
    w = np.exp(-np.exp(decay.reshape(layer.heads)))
    u = layer["att.time_faaaa"].reshape(layer.heads)
    y = np.zeros(layer.heads)
    for head, s in enumerate(layer.state):
        added = np.outer(k[head], v[head])
        y[head] = r[head] @ (u[head][:, None] * added + s)
        layer.state[head] = w[head][:, None] * s + added
    gate = layer["att.gate.weight"] @ given["g"]
    normed = norm(layer, "att.ln_x", y, GROUP_NORM_EPS).reshape(-1)
    return layer["att.output.weight"] @ (normed * gate * sigmoid(gate))


def goose(layer, x, before, v_first):
    """RWKV-7's time mix: S = S (diag(w) - k^T (k a)) + v^T k, then y = S r."""
    given = {c: x + (before - x) * layer[f"att.x_{c}"] for c in "rwkvag"}
    r, k, v = (
        layer[f"att.{name}.weight"] @ given[name[0]] for name in ("receptance", "key", "value")
    )
    z = layer["att.w0"] + np.tanh(given["w"] @ layer["att.w1"]) @ layer["att.w2"]
    w = np.exp(-np.exp(-0.5) * sigmoid(z)).reshape(layer.heads)
    a = sigmoid(layer["att.a0"] + given["a"] @ layer["att.a1"] @ layer["att.a2"])
    g = sigmoid(given["g"] @ layer["att.g1"]) @ layer["att.g2"]
    unit = (k * layer["att.k_k"]).reshape(layer.heads)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    k = (k * (1 + (a - 1) * layer["att.k_a"])).reshape(layer.heads)
    if v_first is None:
        v_first = v
    else:
        low = given["v"] @ layer["att.v1"] @ layer["att.v2"]
        v = v + (v_first - v) * sigmoid(layer["att.v0"] + low)
    r, v, a = (value.reshape(layer.heads) for value in (r, v, a))
    y = np.zeros(layer.heads)
    for head, s in enumerate(layer.state):
        removed = np.outer(s @ unit[head], unit[head] * a[head])
        layer.state[head] = s * w[head][None, :] - removed + np.outer(v[head], k[head])
        y[head] = layer.state[head] @ r[head]
    bonus = (r * k * layer["att.r_k"].reshape(layer.heads)).sum(-1, keepdims=True) * v
    y = norm(layer, "att.ln_x", y, GROUP_NORM_EPS) + bonus
    return layer["att.output.weight"] @ (y.reshape(-1) * g), v_first


def mixed(x, before, mix):
    """RWKV-4 and 5: the mix is the weight of the token itself."""
    return x * mix + before * (1 - mix)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
