"""RWKV-4 to 6 in float16: their residual stream, which would overflow, is halved on its way.

The models here add about 10000 a block: beyond float16 after some ten of their 18 blocks. Measured
in NumPy with the stream halved: at most 0.013 from the float32 logits, which are about 2 in size.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.models.blocks import rescale
from tests.models.official import worst
from tests.models.older_checkpoints import OLDER, random_older

TOKENS = list(range(40))
BLOCKS = 18
FAR = 0.03
"""Float16 has 11 bits: a residual stream rounded 36 times, and read through norms."""


@pytest.fixture(scope="module", params=OLDER)
def growing(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    return random_older(path, request.param, layers=BLOCKS, residual=10000)


def logits_of(model):
    return model.forward(TOKENS, full_output=True)[0]


def test_a_growing_residual_stream_stays_finite_and_near_float32(growing):
    expected = logits_of(kf.load_reference(growing))
    found = logits_of(kf.load_reference(growing, activations="f16"))
    assert 0 < worst(found, expected) < FAR  # not equal: it really was rounded


def test_the_same_stream_overflows_where_it_is_not_halved(growing, monkeypatch):
    monkeypatch.setattr(rescale, "RESCALE_EVERY", BLOCKS + 1)
    with np.errstate(all="ignore"):
        found = logits_of(kf.load_reference(growing, activations="f16"))
    assert not np.isfinite(found).all()


@pytest.mark.parametrize("version", OLDER)
def test_halving_loses_nothing_where_nothing_overflows(tmp_path, monkeypatch, version):
    """Powers of two are exact; what is left is the norms' epsilon beside a variance of 1e6."""
    path = random_older(tmp_path / "model.safetensors", version, layers=13, residual=2000)
    halved = logits_of(kf.load_reference(path, activations="f16"))
    monkeypatch.setattr(rescale, "RESCALE_EVERY", BLOCKS)
    assert worst(halved, logits_of(kf.load_reference(path, activations="f16"))) < 1e-5


def test_states_of_float16_and_float32_runs_agree(growing):
    _, exact = kf.load_reference(growing).forward(TOKENS)
    _, found = kf.load_reference(growing, activations="f16").forward(TOKENS)
    for name, values in exact.arrays.items():
        assert worst(found.arrays[name], values) < 0.02 * max(1, np.abs(values).max()), name


@pytest.mark.vulkan
def test_a_device_keeps_a_growing_residual_stream_finite_too(growing, device):
    expected = logits_of(kf.load_reference(growing))
    with kf.load_model(growing, device, weights="f32", activations="f16") as model:
        found = logits_of(model)
        single, _ = model.forward(TOKENS[:1])
    assert worst(found, expected) < FAR
    assert worst(single, expected[0]) < FAR
