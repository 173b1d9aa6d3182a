"""RWKV-7's time mix in one dispatch: what it gives, when it is taken, what it saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.models.dispatches import DispatchCount
from kernelforge_runtime.vk import Device
from tests.models.checkpoints import random_rwkv7
from tests.models.fused_kernels import generic_without, kernel_set, tuned

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

LAYERS = 3
FUSED = ("rwkv7_mix", "norm_gemv")
SEPARATE = {"rwkv7_gates", "wkv7", "rwkv7_readout"}
MIX = Problem(T=1, H=2, N=64, P=544, B=1)
PARTS = (
    ("rwkv7_gates", "f32", Problem(T=1, H=2, N=64, P=544)),
    ("wkv7", "f32", Problem(T=1, H=2, N=64, B=1)),
    ("rwkv7_readout", "f32", Problem(T=1, H=2, N=64)),
)
PROMPT = [5, 17, 3, 80, 3, 17, 44]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_rwkv7(
        tmp_path_factory.mktemp("random") / "model.safetensors", layers=LAYERS, width=128
    )


def with_mix(device: Device, folder: Path, mix_ns: int = 100, part_ns: int = 100) -> KernelSet:
    """Kernels as after tuning both."""
    parts = [(*part, part_ns) for part in PARTS]
    own = tuned(device, folder, [("rwkv7_mix", "f32", MIX, mix_ns), *parts])
    return kernel_set(own, generic_without(device.info, FUSED))


def without_mix(device: Device) -> KernelSet:
    return kernel_set(generic_without(device.info, FUSED))


def families(model: kf.Model, tokens: int, sequences: int = 1) -> set[str]:
    return {c.selection.entry.family for c in model.calls(tokens, "last", sequences)}


def test_a_layer_of_decode_takes_eight_dispatches_and_ten_without_the_fused_kernel(
    path: Path, device: Device, tmp_path: Path
) -> None:
    for kernels, each in ((with_mix(device, tmp_path), 8), (without_mix(device), 10)):
        with kf.load_model(path, device, kernels, "f32") as model:
            found = model.dispatches()
        # Around the layers: embedding, its norm, the last norm, the head and the choice.
        assert found == DispatchCount(LAYERS * each + 5, (each,) * LAYERS)
        assert str(found) == f"{LAYERS * each + 5} dispatches, {each} per layer"


def test_decode_prompt_and_batch_give_what_the_definition_gives(
    path: Path, device: Device, tmp_path: Path
) -> None:
    reference = kf.load_reference(path, weights="f32", dtype=np.float64)
    expected, kept = reference.forward(PROMPT, full_output=True)
    with kf.load_model(path, device, with_mix(device, tmp_path), "f32", slots=3) as model:
        assert families(model, 1) & {*FUSED, *SEPARATE} == {"rwkv7_mix"}
        state, logits = None, []
        for token in PROMPT:
            last, state = model.forward([token], state)
            logits.append(last)
        whole, after = model.forward(PROMPT, full_output=True)
        texts = [PROMPT[:3], PROMPT[:6], PROMPT]
        batch, states = model.forward_batch(texts)
        for found in (np.stack(logits), whole):
            np.testing.assert_allclose(found, expected, atol=1e-4)
        np.testing.assert_allclose(batch, expected[[2, 5, 6]], atol=1e-4)
        for found in (state, after, states[-1]):
            loaded = tmp_path / "state.safetensors"
            found.save(loaded)
            for name, values in kept.arrays.items():
                got = model.load_state(loaded).arrays[name]
                np.testing.assert_allclose(got, values, atol=1e-4)


def test_few_tokens_of_a_sequence_are_mixed_in_one_dispatch_and_a_long_prompt_is_not(
    path: Path, device: Device, tmp_path: Path
) -> None:
    with kf.load_model(path, device, with_mix(device, tmp_path), "f32", slots=16) as model:
        for tokens, sequences, fused in (
            (1, 1, True),
            (8, 1, True),
            (16, 16, True),
            (16, 1, False),
        ):
            found = families(model, tokens, sequences)
            assert ("rwkv7_mix" in found) is fused
            assert bool(found & SEPARATE) is not fused


def test_bundles_from_before_the_fused_kernel_still_run(path: Path, device: Device) -> None:
    reference = kf.load_reference(path, weights="f32")
    expected, _ = reference.forward(PROMPT)
    with kf.load_model(path, device, without_mix(device), "f32") as model:
        assert families(model, 1) >= SEPARATE
        found, _ = model.forward(PROMPT)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_fused_kernel_that_was_measured_slower_is_not_taken(
    path: Path, device: Device, tmp_path: Path
) -> None:
    kernels = with_mix(device, tmp_path, mix_ns=400)
    with kf.load_model(path, device, kernels, "f32") as model:
        assert "rwkv7_mix" not in families(model, 1)


def test_tuning_is_told_of_both_ways(path: Path, device: Device, tmp_path: Path) -> None:
    for mix_ns in (100, 400):
        kernels = with_mix(device, tmp_path / str(mix_ns), mix_ns)
        with kf.load_model(path, device, kernels, "f32") as model:
            found = {(family, problem): n for family, _, problem, n in model.problems((1,))}
        assert found["rwkv7_mix", MIX] == LAYERS - 1  # the first layer has one LoRA less
        for family, _, problem in PARTS:
            assert found[family, problem] == LAYERS - (family == "rwkv7_gates")


def test_tuning_for_slots_is_told_of_a_head_that_multiplies_all_of_them(
    path: Path, device: Device
) -> None:
    with kf.load_model(path, device, without_mix(device), "f32", slots=8) as model:
        vocab = model.config.vocab
        found = model.problems((1, 8), slots=(8,))
        prompts = model.problems((1, 8))

    def heads(problems: list[tuple[str, str, Problem, int]]) -> set[int]:
        return {p["T"] for family, _, p, _ in problems if family == "gemv" and p["M"] == vocab}

    assert heads(prompts) == {1}
    assert heads(found) == {1, 8}
