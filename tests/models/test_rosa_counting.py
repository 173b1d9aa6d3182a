"""The counting models count as their author's do, and equal their definition."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.models import plain
from tests.models.later_checkpoints import random_rosa_counting
from tests.models.plain import weights_of

STARTS = (3, 12, 42, 150, 525)
PUBLISHED = {1: [119, 122, 115, 110, 101], 4: [124, 124, 120, 118, 111]}
FILES = {1: "251016_rosa_1bit_run.pth", 4: "251018_rosa_4bit_run.pth"}
both_kinds = pytest.mark.parametrize("bits", [1, 4])


def counting(start, length=128):
    text, number = [10], start
    while len(text) < length:
        text += [int(digit) for digit in str(number)] + [10]
        number += 1
    return text[:length]


def right(model):
    found = []
    for start in STARTS:
        text = counting(start)
        logits, _ = model.forward(text[:-1], full_output=True)
        found.append(int((logits.argmax(-1) == text[1:]).sum()))
    return found


def by_definition(path, tokens, bits):
    with open_checkpoint(path) as read:
        layers = sum(name.endswith(".emb0") for name in read)
        x = weights_of(read, "e.")["weight"][tokens]
        followers = weights_of(read, "emb_rosa.emb.")["weight"]
        for t, token in enumerate(plain.followed(tokens, tokens, tokens)):
            if token is not None:
                x[t] += followers[token]
        for i in range(layers):
            if i:
                lin = weights_of(read, f"lin{i - 1 or ''}.")
                x = x + x @ lin["weight"].T + lin["bias"]
            w = weights_of(read, f"rosa{i + 1}.")
            unmatched = 0 * w["emb0"] if bits == 1 else w["emb0"]
            x = x + plain.rosa(x, x, x, bits, w["emb1"], w["emb0"], unmatched)
        head = weights_of(read, "o.")
        return x @ head["weight"].T + head["bias"]


@both_kinds
def test_numpy_gets_as_many_symbols_right_as_the_author_published(shared, bits):
    assert right(kf.load_reference(shared / FILES[bits])) == PUBLISHED[bits]


@pytest.mark.vulkan
@both_kinds
def test_vulkan_gets_as_many_symbols_right_as_the_author_published(shared, device, bits):
    with kf.load_model(shared / FILES[bits], device, weights="f32") as model:
        assert right(model) == PUBLISHED[bits]


@both_kinds
def test_the_published_model_equals_the_definition(shared, bits):
    tokens = counting(42, 60)
    logits, _ = kf.load_reference(shared / FILES[bits], np.float64).forward(
        tokens, full_output=True
    )
    expected = by_definition(shared / FILES[bits], tokens, bits)
    assert np.abs(logits - expected).max() < 1e-5


@both_kinds
@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers_equals_the_definition(tmp_path, rng, bits, layers):
    path = random_rosa_counting(tmp_path / "model.safetensors", bits, layers)
    tokens = rng.integers(0, 11, 50).tolist()
    logits, _ = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    assert np.abs(logits - by_definition(path, tokens, bits)).max() < 1e-5


def test_a_missing_product_between_layers_is_named(tmp_path):
    from safetensors.numpy import save_file

    path = random_rosa_counting(tmp_path / "model.safetensors", layers=3)
    with open_checkpoint(path) as read:
        weights = {n: read.tensor(n) for n in read if n != "lin1.bias"}
    save_file(weights, str(path), {"rosa_bits": "1"})
    with pytest.raises(kf.KernelForgeError, match=r"lin1\.bias is missing"):
        kf.load_reference(path)
