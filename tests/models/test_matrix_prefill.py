"""A prompt through cooperative matrices, chosen by a bundle in which they were faster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.compile import buildable, compile_variant
from kernelforge.errors import SpaceError
from kernelforge.families import get_family
from kernelforge.measure.verify import verify
from kernelforge.pack import Winner, pack
from kernelforge.render import render
from kernelforge_runtime.abi.device_info import DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet, locate_generic, open_bundle
from kernelforge_runtime.vk import Device
from tests.models.checkpoints import random_rwkv7

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

TOKENS = list(range(40))
FLEXIBLE = "gemm_coop2"
MATRICES = "gemm_coop"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / "model.safetensors"
    return random_rwkv7(target, layers=2, width=128)


@dataclass
class Prompt:
    """Its logits, and which families did its products."""

    logits: np.ndarray
    products: set[str]


def prompt(
    path: Path, device: Device, kernels: KernelSet, weights: str, activations: str
) -> Prompt:
    with kf.load_model(path, device, kernels, weights, activations) as model:
        logits, _ = model.forward(TOKENS, full_output=True)
        families = {call.selection.entry.family for call in model.calls(64, "full")}
    return Prompt(logits, {name for name in families if name.startswith("gemm")})


def generic(info: DeviceInfo) -> KernelSet:
    return KernelSet.open(info, locate_generic(info).bundle_path)


def timed(device: Device, family_name: str, precision: str, problem: Problem, ns: int) -> Winner:
    """The default variant, verified, as if it had been measured."""
    family = get_family(family_name)
    params = family.default(precision, buildable(device.info), problem)
    module = compile_variant(family, precision, params)
    checked = verify(device, family, family.precision(precision), module, problem, 1)
    assert checked.ok, checked.reason
    made = render(family, precision, params)
    return Winner(
        family_name, precision, problem, module, ns, 0, 1, ns, checked,
        made.template_sha256, made.sha256,
    )  # fmt: skip


def measured(
    device: Device, precision: str, matrices_ns: int, folder: Path, matrices: str = MATRICES
) -> KernelSet:
    """Kernels as after tuning: gemm took 1000 ns, matrices the time given."""
    problem = Problem(M=128, K=128, S=1, T=64, X=16, Y=16)
    try:
        both = [
            timed(device, "gemm", precision, problem, 1000),
            timed(device, matrices, precision, problem, matrices_ns),
            timed(device, "gemm", precision, Problem(**{**problem, "Y": 32}), 1000),
            timed(device, matrices, precision, Problem(**{**problem, "Y": 32}), matrices_ns),
        ]
    except SpaceError as error:
        pytest.skip(f"no cooperative matrices here: {error}")
    pack(folder, device.info, both)
    own = next(f.parent for f in folder.glob("*/manifest.json"))
    return KernelSet([open_bundle(own, device.info), *generic(device.info).bundles])


@pytest.mark.parametrize("weights", ["f16", "bf16", "q8", "nf4"])
def test_a_prompt_in_halves_gives_the_logits_it_gives_without_matrices(
    path: Path, device: Device, weights: str, tmp_path: Path
) -> None:
    kernels = measured(device, weights, 500, tmp_path)
    found = prompt(path, device, kernels, weights, "f16")
    plain = prompt(path, device, generic(device.info), weights, "f16")
    assert MATRICES in found.products
    assert plain.products == {"gemm"}
    np.testing.assert_allclose(found.logits, plain.logits, atol=0.01)


def test_a_prompt_in_float32_stays_without_matrices_bit_for_bit(
    path: Path, device: Device, tmp_path: Path
) -> None:
    kernels = measured(device, "f16", 1, tmp_path)
    found = prompt(path, device, kernels, "f16", "f32")
    plain = prompt(path, device, generic(device.info), "f16", "f32")
    assert found.products == {"gemm"}
    np.testing.assert_array_equal(found.logits, plain.logits)


def test_matrices_that_were_slower_are_not_used(path: Path, device: Device, tmp_path: Path) -> None:
    kernels = measured(device, "f16", 2000, tmp_path)
    assert prompt(path, device, kernels, "f16", "f16").products == {"gemm"}


def test_flexible_matrices_do_a_prompt_where_they_are_faster_still(
    path: Path, device: Device, tmp_path: Path
) -> None:
    kernels = measured(device, "f16", 500, tmp_path, FLEXIBLE)
    found = prompt(path, device, kernels, "f16", "f16")
    plain = prompt(path, device, generic(device.info), "f16", "f16")
    assert FLEXIBLE in found.products
    np.testing.assert_allclose(found.logits, plain.logits, atol=0.01)
