"""RWKV-4 to 6 in float16: their residual stream, which would overflow, is halved on its way.

The models here add about 12000 a block: beyond float16 before the last of their 14 blocks. Measured
in NumPy with the stream halved: at most 0.011 from the float32 logits, which are about 2 in size.
"""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.models.blocks import rescale
from tests.models.official import worst
from tests.models.older_checkpoints import OLDER, random_older

TOKENS = list(range(12))
BLOCKS = 14
FAR = 0.03
"""Float16 has 11 bits: a residual stream rounded 28 times, and read through norms."""


@pytest.fixture(scope="module", params=OLDER)
def growing(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    return random_older(path, request.param, layers=BLOCKS, width=64, heads=1, residual=12000)


def logits_of(model):
    return model.forward(TOKENS, full_output=True)[0]


def test_a_growing_residual_stream_stays_finite_and_near_float32(growing):
    expected, exact = kf.load_reference(growing).forward(TOKENS, full_output=True)
    model = kf.load_reference(growing, activations="f16")
    found, state = model.forward(TOKENS, full_output=True)
    assert 0 < worst(found, expected) < FAR  # not equal: it really was rounded
    for name, values in exact.arrays.items():
        assert worst(state.arrays[name], values) < 0.02 * np.abs(values[values > -1e29]).max(), name


def test_the_same_stream_overflows_where_it_is_not_halved(growing, monkeypatch):
    monkeypatch.setattr(rescale, "RESCALE_EVERY", BLOCKS + 1)
    with np.errstate(all="ignore"):
        found = logits_of(kf.load_reference(growing, activations="f16"))
    assert not np.isfinite(found).all()


@pytest.mark.parametrize("version", OLDER)
def test_halving_loses_nothing_where_nothing_overflows(tmp_path, monkeypatch, version):
    """Powers of two are exact; what is left is the norms' epsilon beside a variance of 1e6."""
    path = random_older(
        tmp_path / "model.safetensors", version, layers=13, width=64, heads=1, residual=2000
    )
    halved = logits_of(kf.load_reference(path, activations="f16"))
    monkeypatch.setattr(rescale, "RESCALE_EVERY", BLOCKS)
    assert worst(halved, logits_of(kf.load_reference(path, activations="f16"))) < 1e-5


@pytest.mark.vulkan
def test_a_device_keeps_a_growing_residual_stream_finite_too(growing, device):
    expected = logits_of(kf.load_reference(growing))
    with kf.load_model(growing, device, weights="f32", activations="f16") as model:
        found = logits_of(model)
        single, _ = model.forward(TOKENS[:1])
    assert worst(found, expected) < FAR
    assert worst(single, expected[0]) < FAR
