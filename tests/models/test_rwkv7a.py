"""RWKV-7a is held to the official package's numbers; its tables stay in the file.

Measured against the official float32 run: 5.4e-6 in NumPy float32, 9.2e-6 in float64.
"""

import subprocess
import sys

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.weights import open_checkpoint
from tests.models import plain
from tests.models.checkpoints import ROOT, from_golden
from tests.models.later_checkpoints import random_rwkv7a
from tests.models.plain import weights_of

TOKENS = [5, 17, 17, 3, 90, 5, 41, 0, 17, 17, 3]


@pytest.fixture
def golden(shared, tmp_path):
    path = tmp_path / "model.safetensors"
    return path, from_golden(shared / "golden_v7_deepembed.npz", path)


def worst(a, b):
    return float(np.abs(np.asarray(a, np.float64) - b).max())


def assert_golden(model, arrays):
    tokens = arrays["tokens"].tolist()
    sequence, _ = model.forward(tokens, full_output=True)
    state, single = None, []
    for token in tokens:
        logits, state = model.forward([token], state)
        single.append(logits)
    for logits in (sequence, np.stack(single)):
        assert worst(logits, arrays["logits_seq"]) < 1e-3
        assert worst(logits, arrays["logits_one"]) < 1e-3
    for layer in range(2):
        shift, wkv = state.arrays["shift"], state.arrays["wkv"]
        assert worst(shift[2 * layer], arrays[f"state.{3 * layer}"]) < 1e-3
        assert worst(wkv[layer], arrays[f"state.{3 * layer + 1}"]) < 1e-3
        assert worst(shift[2 * layer + 1], arrays[f"state.{3 * layer + 2}"]) < 1e-3


def test_numpy_equals_the_official_logits_and_states(golden):
    path, arrays = golden
    model = kf.load_reference(path)
    assert model.config.version == "rwkv7a"
    assert_golden(model, arrays)


@pytest.mark.vulkan
def test_vulkan_equals_the_official_logits_and_states(golden, device):
    path, arrays = golden
    with kf.load_model(path, device, weights="f32") as model:
        assert_golden(model, arrays)


def test_a_model_of_its_own_equals_the_definition(tmp_path):
    path = random_rwkv7a(tmp_path / "model.safetensors")
    logits, _ = kf.load_reference(path, np.float64).forward(TOKENS, full_output=True)
    with open_checkpoint(path) as read:
        assert worst(logits, by_definition(read, TOKENS)) < 1e-5


def by_definition(read, tokens):
    """The tables extended by the whole vocabulary's embedding, as the official loader does."""
    emb = weights_of(read, "emb.")["weight"]
    ln0, out = weights_of(read, "blocks.0.ln0."), weights_of(read, "ln_out.")
    emb = plain.layer_norm(emb, **ln0)
    x, v_first = emb[tokens], None
    for i in range(2):
        block = f"blocks.{i}."
        ffn = weights_of(read, f"{block}ffn.")
        table = ffn["s_emb.weight"] + emb @ ffn["s_emb_x.weight"].T
        normed = plain.layer_norm(x, **weights_of(read, f"{block}ln1."))
        y, v_first = plain.time_mix(weights_of(read, f"{block}att."), normed, v_first)
        x = x + y
        normed = plain.layer_norm(x, **weights_of(read, f"{block}ln2."))
        own = table[tokens].reshape(-1, 32, 32)
        short = np.einsum("ti,tij->tj", normed @ ffn["s1"], own)
        keys = plain.channel_keys(ffn, normed) * (short @ ffn["s2"] + ffn["s0"])
        x = x + keys @ ffn["value.weight"].T
    return plain.layer_norm(x, **out) @ weights_of(read, "head.")["weight"].T


def test_a_table_with_a_wrong_row_length_is_named(tmp_path):
    path = random_rwkv7a(tmp_path / "model.safetensors")
    with open_checkpoint(path) as read:
        weights = {name: read.tensor(name) for name in read}
    weights["blocks.1.ffn.s_emb.weight"] = np.zeros((96, 512), np.float32)
    from safetensors.numpy import save_file

    save_file(weights, str(path))
    with pytest.raises(kf.KernelForgeError, match=r"s_emb\.weight has shape \[96, 512\]"):
        kf.load_reference(path)


PEAK = """
import re, sys
import kernelforge_runtime as kf
model = kf.load_reference(sys.argv[1])
model.forward([1, 5, 7])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_loading_and_running_does_not_read_the_tables_into_memory(tmp_path):
    peaks = {}
    for vocab in (96, 20_000):
        path = random_rwkv7a(tmp_path / f"{vocab}.safetensors", vocab=vocab)
        told = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)],
            env={"PYTHONPATH": f"{ROOT}/runtime", "OPENBLAS_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[vocab] = int(told.stdout) / 1024
        path.unlink()
    tables = 2 * 20_000 * 1024 * 4 / 2**20  # MB; the embedding and the head are 10 MB beside them
    assert peaks[20_000] - peaks[96] < tables / 3
