"""Matrices and tables larger than a binding may be go in pages, on every device."""

import dataclasses

import numpy as np
import pytest

import kernelforge_runtime as kf
from tests.models.checkpoints import random_rwkv7

pytestmark = pytest.mark.vulkan


@pytest.mark.parametrize("weights", ["f32", "f16"])
@pytest.mark.parametrize("vocab", [5120, 5003])
def test_a_head_and_a_table_beyond_the_binding_limit_are_right(
    device, tmp_path, monkeypatch, vocab, weights
):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=64, vocab=vocab)
    tokens = [0, 1023, 1024, vocab - 1, 2047, 5]
    reference = kf.load_reference(path, np.float64, weights)
    expected, _ = reference.forward(tokens, full_output=True)
    limit = 64 * (2 if weights == "f16" else 4) * 1024 + 60_000  # one page of 1024 rows
    small = dataclasses.replace(device.info, max_storage_buffer=limit)
    monkeypatch.setattr(device, "info", small)
    with kf.load_model(path, device, weights=weights) as model:
        pages = [c for c in model.calls(1) if c.problem.get("V", c.problem.get("M")) == 1024]
        assert len(pages) >= 8
        whole, _ = model.forward(tokens, full_output=True)
        np.testing.assert_allclose(whole, expected, atol=1e-4)
        for token in (0, vocab - 1):
            state = model.new_state()
            logits, _ = model.forward([token], state.clone())
            np.testing.assert_allclose(logits, reference.forward([token])[0], atol=1e-4)
            assert model.greedy(token, state) == int(np.argmax(logits))
