"""Prompts through the chunked recurrences, chosen by a bundle in which they were faster."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.compile import missing_extensions
from kernelforge.families import get_family
from kernelforge_runtime.bundle.crossover import RIVALS
from tests.models.checkpoints import from_golden
from tests.models.fused_kernels import generic_without, kernel_set, tuned
from tests.models.official import LIMIT, worst
from tests.models.versions import VERSIONS

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

RECURRENT = {family: rivals[0].family for family, rivals in RIVALS.items() if rivals[0].along}
MATRICES = {family: rivals[1].family for family, rivals in RIVALS.items() if rivals[0].along}


def preferring(path, device, folder, chunked_ns, recurrent_ns=1000, matrices_ns=None):
    """Kernels as after tuning this model at 32 tokens, in which the forms took these times."""
    generic = generic_without(device.info, ())
    with kf.load_model(path, device, kernel_set(generic), weights="f32") as model:
        found = {(f, problem) for f, _, problem, _ in model.problems((32,)) if f in RECURRENT}
    assert found
    timed = [
        (name, "f32", problem, ns)
        for family, problem in found
        for name, ns in (
            (family, recurrent_ns),
            (RECURRENT[family], chunked_ns),
            (MATRICES[family], matrices_ns),
        )
        if ns is not None
    ]
    return kernel_set(tuned(device, folder, timed), generic)


def forms(model, tokens, sequences=1):
    """Which recurrences a step of so many tokens calls."""
    names = {call.selection.entry.family for call in model.calls(tokens, "last", sequences)}
    return names & {*RECURRENT, *RECURRENT.values(), *MATRICES.values()}


@pytest.mark.parametrize("file", ["golden_v5.2.npz", "golden_v6.npz", "golden_v7.npz"])
def test_chunked_kernels_give_the_official_logits(shared, device, tmp_path, file):
    path = tmp_path / "model.safetensors"
    arrays = from_golden(shared / file, path)
    tokens = arrays["tokens"].tolist()
    kernels = preferring(path, device, tmp_path / "tuned", 500)
    with kf.load_model(path, device, kernels, weights="f32") as model:
        assert forms(model, 32) <= set(RECURRENT.values())
        logits, _ = model.forward(tokens, full_output=True)
        assert worst(logits, arrays["logits_seq"]) <= LIMIT
        assert worst(logits, arrays["logits_one"]) <= LIMIT


@pytest.mark.parametrize("version", ["rwkv5.0", "rwkv6", "rwkv7"])
def test_a_long_prompt_in_chunks_is_the_same_as_in_float64_and_decode_goes_on(
    version, device, tmp_path
):
    path = tmp_path / "model.safetensors"
    VERSIONS[version](path)
    tokens = np.random.default_rng(3).integers(0, 96, 131).tolist()
    expected, exact = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    kernels = preferring(path, device, tmp_path / "tuned", 500)
    with kf.load_model(path, device, kernels, weights="f32", slots=2) as model:
        assert forms(model, 128) <= set(RECURRENT.values())
        assert forms(model, 1) <= set(RECURRENT)  # decode stays token by token
        assert forms(model, 16, sequences=16) <= set(RECURRENT)
        first, state = model.forward(tokens[:130], full_output=True)
        last, state = model.forward(tokens[130:], state, full_output=True)
        assert worst(np.concatenate([first, last]), expected) < LIMIT
        scale = max(1.0, float(np.abs(exact.arrays["wkv"]).max()))
        assert worst(state.arrays["wkv"], exact.arrays["wkv"]) < LIMIT * scale
        pair, _ = model.forward_batch([tokens[:33], tokens[:90]])
        assert worst(pair[0], expected[32]) < LIMIT
        assert worst(pair[1], expected[89]) < LIMIT


@pytest.mark.parametrize("version", ["rwkv5.0", "rwkv6", "rwkv7"])
def test_a_prompt_through_cooperative_matrices_is_the_same_as_in_float64(version, device, tmp_path):
    if not device.info.cooperative_shapes:
        pytest.skip(f"{device.info.name} has no cooperative matrices")
    if missing := missing_extensions(get_family(MATRICES["wkv7"])):
        pytest.skip(f"the GLSL compiler does not know {', '.join(missing)}")
    path = tmp_path / "model.safetensors"
    VERSIONS[version](path)
    tokens = np.random.default_rng(3).integers(0, 96, 70).tolist()
    expected, exact = kf.load_reference(path, np.float64).forward(tokens, full_output=True)
    kernels = preferring(path, device, tmp_path / "tuned", 700, matrices_ns=500)
    with kf.load_model(path, device, kernels, weights="f32", slots=2) as model:
        (used,) = forms(model, 64)
        assert used in MATRICES.values()
        logits, state = model.forward(tokens, full_output=True)
        assert worst(logits, expected) < LIMIT
        scale = max(1.0, float(np.abs(exact.arrays["wkv"]).max()))
        assert worst(state.arrays["wkv"], exact.arrays["wkv"]) < LIMIT * scale
    kernels = preferring(path, device, tmp_path / "slower", 500, matrices_ns=700)
    with kf.load_model(path, device, kernels, weights="f32") as model:
        (used,) = forms(model, 64)
        assert used in RECURRENT.values()


def test_chunked_kernels_that_were_slower_are_not_used(device, tmp_path):
    path = tmp_path / "model.safetensors"
    VERSIONS["rwkv7"](path)
    kernels = preferring(path, device, tmp_path / "tuned", 2000)
    with kf.load_model(path, device, kernels, weights="f32") as model:
        assert forms(model, 256) <= set(RECURRENT)
