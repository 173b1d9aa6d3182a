"""The tests' own reader of rwkv.cpp files: the models it gives must have the official form."""

import struct

import numpy as np
import pytest

from tests.runtime.ggmf import MAGIC, official, parse, read_ggmf
from tests.runtime.model_files import DATA


def data(name):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return DATA / name


def header(*tensors, magic=MAGIC, version=101):
    blob = struct.pack("<6I", magic, version, 4, 2, 1, 0)
    for name, kind, dims, content in tensors:
        blob += struct.pack(f"<{3 + len(dims)}I", len(dims), len(name), kind, *dims)
        blob += name + content
    return blob


def rwkv7_logits(w, tokens):
    """Float64 [V] logits after the tokens, from the zero state: the published formulas."""
    w = {name: array.astype(np.float64) for name, array in w.items()}
    layers = 1 + max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))
    H, N = w["blocks.0.att.r_k"].shape

    def norm(x, name, groups=1, eps=1e-5):
        g = x.reshape(groups, -1)
        g = (g - g.mean(1, keepdims=True)) / np.sqrt(g.var(1, keepdims=True) + eps)
        return g.reshape(-1) * w[name + ".weight"] + w[name + ".bias"]

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    S = np.zeros((layers, H, N, N))
    shift = np.zeros((layers, 2, H * N))
    for token in tokens:
        x = norm(w["emb.weight"][token], "blocks.0.ln0")
        for i in range(layers):
            b = f"blocks.{i}."
            p = {k[len(b) + 4 :]: v for k, v in w.items() if k.startswith(b + "att.")}
            h = norm(x, b + "ln1")
            d, shift[i, 0] = shift[i, 0] - h, h
            xr, xw, xk, xv, xa, xg = (h + d * p[f"x_{c}"].reshape(-1) for c in "rwkvag")
            r, k, v = (
                p[m + ".weight"] @ y for m, y in (("receptance", xr), ("key", xk), ("value", xv))
            )
            decay = np.exp(-np.exp(-0.5) * sigmoid(p["w0"][0, 0] + np.tanh(xw @ p["w1"]) @ p["w2"]))
            a = sigmoid(p["a0"][0, 0] + xa @ p["a1"] @ p["a2"])
            g = sigmoid(xg @ p["g1"]) @ p["g2"]
            kk = (k * p["k_k"][0, 0]).reshape(H, N)
            kk /= np.maximum(np.linalg.norm(kk, axis=1, keepdims=True), 1e-12)
            k = k * (1 + (a - 1) * p["k_a"][0, 0])
            if i == 0:
                v_first = v
            else:
                v = v + (v_first - v) * sigmoid(p["v0"][0, 0] + xv @ p["v1"] @ p["v2"])
            r, k, v, a, decay = (y.reshape(H, N) for y in (r, k, v, a, decay))
            removed = np.einsum("hij,hj->hi", S[i], -kk)
            S[i] = S[i] * decay[:, None] + removed[:, :, None] * (kk * a)[:, None]
            S[i] += v[:, :, None] * k[:, None]
            y = norm(np.einsum("hij,hj->hi", S[i], r).reshape(-1), b + "att.ln_x", H, 64e-5)
            y = y + ((r * k * p["r_k"]).sum(1, keepdims=True) * v).reshape(-1)
            x = x + p["output.weight"] @ (y * g)
            h = norm(x, b + "ln2")
            d, shift[i, 1] = shift[i, 1] - h, h
            up = w[b + "ffn.key.weight"] @ (h + d * w[b + "ffn.x_k"].reshape(-1))
            x = x + w[b + "ffn.value.weight"] @ np.maximum(up, 0) ** 2
    return w["head.weight"] @ norm(x, "ln_out")


@pytest.mark.parametrize("precision", ["FP32", "FP16"])
def test_the_trained_rwkv7_gives_the_published_logits(precision):
    model = read_ggmf(data(f"tiny-rwkv-7v0-834K-{precision}.bin"))
    assert model["blocks.0.att.x_r"].shape == (1, 1, 64)
    assert model["blocks.0.att.w1"].shape == (64, 32)
    want = np.fromfile(data("expected-logits-7v0-834K.bin"), np.float32)
    assert np.abs(rwkv7_logits(model, b'"in') - want).max() < 2e-6


def test_five_bit_weights_are_near_the_full_ones():
    full = read_ggmf(data("tiny-rwkv-7v0-834K-FP32.bin"))
    packed = read_ggmf(data("tiny-rwkv-7v0-834K-Q5_1.bin"))
    assert list(full) == list(packed)
    for name, array in full.items():
        assert array.shape == packed[name].shape
        assert np.abs(array - packed[name]).max() <= 0.04 * np.abs(array).max()


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("tiny-rwkv-4v0-660K-FP32.bin", "blocks.1.att.time_decay", (128,)),
        ("tiny-rwkv-5v2-730K-FP32.bin", "blocks.1.att.time_decay", (8, 8)),
        ("tiny-rwkv-6v0-3m-Q5_0.bin", "blocks.1.att.time_maa_w2", (5, 32, 128)),
    ],
)
def test_older_models_have_official_shapes_and_finite_values(name, tensor, shape):
    model = read_ggmf(data(name))
    assert model[tensor].shape == shape
    assert all(np.isfinite(array).all() for array in model.values())


def test_decays_are_taken_back_to_what_was_trained():
    raw = np.linspace(-3, 1, 4, dtype=np.float32)
    emb = {"emb.weight": np.zeros((4, 2), np.float32)}
    v4 = official(emb | {"blocks.0.att.time_decay": -np.exp(raw)})
    np.testing.assert_allclose(v4["blocks.0.att.time_decay"], raw, atol=1e-6)
    v5 = {"blocks.0.att.ln_x.weight": np.ones(4, np.float32)}
    v5["blocks.0.att.time_decay"] = np.exp(-np.exp(raw)).reshape(2, 2, 1)
    np.testing.assert_allclose(
        official(emb | v5)["blocks.0.att.time_decay"], raw.reshape(2, 2), atol=1e-5
    )


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (b"", "0 bytes"),
        (header(magic=1), "not ggmf"),
        (header(version=99), "version 99"),
        (header() + b"abc", "cut short"),
        (header((b"a", 0, (2, 3), bytes(20))), "runs beyond"),
        (header((b"a", 0, (2**32 - 1,) * 3, b"")), "runs beyond"),
        (header((b"a", 9, (2,), b"")), "has type 9"),
        (header((b"a", 7, (20,), b"")), "has type 7"),
        (header((b"a", 0, (1,) * 4, b"")), "4 dimensions"),
        (header((b"\xff", 0, (1,), bytes(4))), "utf-8"),
        (header((b"a", 0, (1,), bytes(4)), (b"a", 0, (1,), bytes(4))), "twice"),
        (header((b"a", 0, (1,), bytes(4))), "not an RWKV model"),
    ],
)
def test_bad_files_are_value_errors(blob, says):
    with pytest.raises(ValueError, match=says):
        official(parse(blob))
