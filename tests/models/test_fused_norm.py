"""Decode's norm and token shift inside the matrix products: what they give, and when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet
from kernelforge_runtime.models.dispatches import DispatchCount
from kernelforge_runtime.ops.vulkan_step import evenly_spaced
from kernelforge_runtime.state import State
from kernelforge_runtime.vk import Device
from tests.models.checkpoints import random_rwkv7
from tests.models.fused_kernels import generic_without, kernel_set, tuned

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

LAYERS = 3
FUSED = ("norm_gemv", "rwkv7_mix")
PROMPT = [5, 17, 3, 80, 3, 17, 44]
TIME = {"M": 544, "K": 128, "S": 6, "T": 1, "X": 32, "Y": 32}
"""The time mix's projections; the first layer has one LoRA less."""
CHANNEL = {"M": 512, "K": 128, "S": 1, "T": 1, "X": 32, "Y": 32}
BY4 = {"LAYOUT": "by4", "ROWS": 4, "VEC": 4}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_rwkv7(
        tmp_path_factory.mktemp("random") / "model.safetensors", layers=LAYERS, width=128
    )


def with_norm(
    device: Device,
    folder: Path,
    time_ns: int = 150,
    channel_ns: int = 150,
    weights: str = "f32",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> KernelSet:
    """Kernels as after tuning both ways: separately each step takes 200 ns."""
    kernels = []
    for sizes, ns in ((TIME, time_ns), (CHANNEL, channel_ns)):
        problem = Problem(**sizes)
        shift = Problem(T=1, C=sizes["K"], S=sizes["S"], X=32)
        kernels += [
            ("norm_gemv", weights, problem, ns),
            ("norm_shift", "f32", shift, 100),
            ("gemv", weights, problem, 100),
        ]
    if changes:
        kernels.append(("gemm", weights, Problem(**{**TIME, "T": 256}), 100))
    own = tuned(device, folder, kernels, changes)
    return kernel_set(own, generic_without(device.info, FUSED))


def count(model: kf.Model, family: str, tokens: int = 1, sequences: int = 1) -> int:
    calls = model.calls(tokens, "last", sequences)
    return sum(call.selection.entry.family == family for call in calls)


def decoded(model: kf.Model) -> tuple[np.ndarray[Any, Any], State]:
    """Logits of every token of PROMPT, one by one, and the state behind them."""
    state, logits = None, []
    for token in PROMPT:
        last, state = model.forward([token], state)
        logits.append(last)
    assert state is not None
    return np.stack(logits), state


def saved(model: kf.Model, state: State, file: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    state.save(file)
    return model.load_state(file).arrays


def test_a_layer_of_decode_takes_two_dispatches_less_and_the_step_one_more(
    path: Path, device: Device, tmp_path: Path
) -> None:
    with kf.load_model(path, device, with_norm(device, tmp_path), "f32") as model:
        found = model.dispatches()
    # Around the layers: embedding, its norm, the last norm, the head, the choice, and the carries.
    assert found == DispatchCount(LAYERS * 8 + 6, (8,) * LAYERS)


@pytest.mark.parametrize("weights", ["f32", "bf16", "q8"])
def test_decode_gives_what_the_separate_kernels_give(
    path: Path, device: Device, tmp_path: Path, weights: str
) -> None:
    results = []
    kernels = with_norm(device, tmp_path, weights=weights)
    for bundles in (kernels, kernel_set(generic_without(device.info, FUSED))):
        with kf.load_model(path, device, bundles, weights) as model:
            fused = count(model, "norm_gemv")
            logits, state = decoded(model)
            results.append((fused, logits, saved(model, state, tmp_path / "state.safetensors")))
    (many, logits, state), (none, expected, kept) = results
    assert (many, none) == (2 * LAYERS, 0)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    for name in kept:
        np.testing.assert_allclose(state[name], kept[name], rtol=0, atol=1e-5, err_msg=name)


def test_sequences_of_a_batch_keep_states_of_their_own(
    path: Path, device: Device, tmp_path: Path
) -> None:
    texts = [PROMPT[:3], PROMPT[:1], PROMPT[2:5]]
    reference = kf.load_reference(path, weights="f32", dtype=np.float64)
    with kf.load_model(path, device, with_norm(device, tmp_path), "f32", slots=4) as model:
        assert count(model, "norm_gemv", 4, 4) == 2 * LAYERS
        _, states = model.forward_batch(texts)
        # Three sequences in a step for four: the last one is padding.
        found, states = model.forward_batch([[7], [8], [9]], states)
        for i, text in enumerate(texts):
            expected, kept = reference.forward([*text, 7 + i])
            np.testing.assert_allclose(found[i], expected, atol=1e-4)
            got = saved(model, states[i], tmp_path / "state.safetensors")["shift"]
            np.testing.assert_allclose(got, kept.arrays["shift"], atol=1e-4)


@pytest.mark.parametrize("slower", ["time", "channel"])
def test_only_the_products_that_were_measured_faster_fused_are_fused(
    path: Path, device: Device, tmp_path: Path, slower: str
) -> None:
    times = {"time_ns": 150, "channel_ns": 150, f"{slower}_ns": 250}
    reference = kf.load_reference(path, weights="f32", dtype=np.float64)
    expected, kept = reference.forward(PROMPT, full_output=True)
    with kf.load_model(path, device, with_norm(device, tmp_path, **times), "f32") as model:
        assert count(model, "norm_gemv") == count(model, "norm_shift") == LAYERS
        # Every other carry moves at the end of the step, and no other.
        assert count(model, "copy") == 1
        logits, state = decoded(model)
        found = saved(model, state, tmp_path / "state.safetensors")
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(found["shift"], kept.arrays["shift"], atol=1e-4)


def test_bundles_from_before_the_fused_kernel_and_long_steps_go_on_as_they_did(
    path: Path, device: Device, tmp_path: Path
) -> None:
    with kf.load_model(path, device, with_norm(device, tmp_path), "f32", slots=16) as model:
        assert count(model, "norm_gemv", 16, 1) == count(model, "norm_gemv", 16, 16) == 0
    old = kernel_set(generic_without(device.info, FUSED))
    with kf.load_model(path, device, old, "f32") as model:
        assert (count(model, "norm_gemv"), count(model, "norm_shift")) == (0, 2 * LAYERS)


def test_tuning_is_told_of_both_ways(path: Path, device: Device, tmp_path: Path) -> None:
    for ns in (150, 250):
        kernels = with_norm(device, tmp_path / str(ns), ns, ns)
        with kf.load_model(path, device, kernels, "f32") as model:
            found = {(family, problem): n for family, _, problem, n in model.problems((1,))}
        assert found["norm_gemv", Problem(**TIME)] == LAYERS - 1
        assert found["gemv", Problem(**TIME)] == LAYERS - 1
        assert found["norm_shift", Problem(T=1, C=128, S=1, X=32)] == LAYERS


def test_the_fused_kernel_reads_the_layout_that_the_matrix_was_packed_in(
    path: Path, device: Device, tmp_path: Path
) -> None:
    reference = kf.load_reference(path, weights="f32", dtype=np.float64)
    expected, _ = reference.forward(PROMPT, full_output=True)
    product = {"gemv": BY4, "gemm": {"LAYOUT": "by4"}}
    for changes, fused in (({**product, "norm_gemv": BY4}, 2 * LAYERS), (product, 0)):
        kernels = with_norm(device, tmp_path / str(fused), changes=changes)
        with kf.load_model(path, device, kernels, "f32") as model:
            assert count(model, "norm_gemv") == fused
            laid_out = [
                call.selection.entry.signature.layouts
                for call in model.calls(1, "last")
                if call.selection.entry.family in ("gemv", "norm_gemv")
            ]
            assert all(laid_out)
            logits, _ = decoded(model)
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_carries_move_in_as_few_dispatches_as_their_spacing_allows() -> None:
    for entries, dispatches in (([0, 1, 2, 3], 1), ([1, 3, 5], 1), ([4], 1), ([0, 1, 5, 6], 2)):
        runs = evenly_spaced(entries)
        assert [entry for run in runs for entry in run] == entries
        assert len(runs) == dispatches
