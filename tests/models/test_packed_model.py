"""A model whose bundle wants its weights in other layouts: packed at load, right all the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge.compile import buildable, compile_variant, find_compiler
from kernelforge.errors import CompileError
from kernelforge.families import get_family
from kernelforge.pack import Winner, pack
from kernelforge.render import render
from kernelforge.weight_layouts import layout_name
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import KernelSet, locate_generic, open_bundle
from kernelforge_runtime.models.model import Model
from kernelforge_runtime.vk import Device
from tests.models.checkpoints import SHARED, from_golden, random_rwkv7

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

TOKENS = [1, 5, 9, 2, 30, 31, 7, 0, 12, 3, 3, 8]


@dataclass(frozen=True)
class Checked:
    """These very kernels are verified by the families' own tests."""

    ok: bool = True
    seed: int = 1
    max_error: float = 0.0
    tolerance: float = 1.0


def timed(device: Device, family_name: str, precision: str, layout: str, ns: int) -> Winner:
    """The default variant with another layout, as if it had been measured."""
    family = get_family(family_name)
    tokens = 1 if family_name == "gemv" else 256
    problem = Problem(M=128, K=128, S=1, T=tokens, X=32, Y=32)
    params = dict(family.default(precision, buildable(device.info), problem))
    if family_name == "gemv":
        params |= {"REDUCE": "shared", "WORKGROUP": 4, "LANES": 4, "ROWS": 8, "COLS": 1}
    params["LAYOUT"] = layout
    module = compile_variant(family, precision, params)
    made = render(family, precision, params)
    return Winner(
        family_name, precision, problem, module, ns, 0, 1, ns, Checked(),
        made.template_sha256, made.sha256,
    )  # fmt: skip


def kernels(device: Device, folder: Path, *winners: Winner) -> KernelSet:
    """These before the generic bundle's."""
    tuned = open_bundle(pack(folder, device.info, winners), device.info)
    generic = open_bundle(locate_generic(device.info).bundle_path, device.info)
    return KernelSet([tuned, generic])


def both(device: Device, precision: str, layout: str, ns: int = 50) -> list[Winner]:
    try:
        find_compiler()
    except CompileError as error:
        pytest.skip(f"no GLSL compiler: {error}")
    return [timed(device, family, precision, layout, ns) for family in ("gemv", "gemm")]


def layouts(model: Model) -> dict[str, set[str]]:
    """Layouts of the weights that a prompt's and a token's products read, by family."""
    found: dict[str, set[str]] = {}
    for call in [*model.calls(1), *model.calls(64, "full")]:
        entry = call.selection.entry
        if entry.family in ("gemv", "gemm"):
            name = dict(entry.signature.layouts).get("weight", "")
            found.setdefault(entry.family, set()).add(name)
    return found


@pytest.mark.parametrize(
    ("precision", "layout"),
    [("f32", "by8"), ("bf16", "by32"), ("f16", "gap"), ("q8", "by8"), ("nf4", "by4")],
)
def test_a_packed_model_gives_the_logits_of_a_row_major_one(device, tmp_path, precision, layout):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=128)
    reference = kf.load_reference(path, np.float64, precision)
    expected, _ = reference.forward(TOKENS, full_output=True)
    packed = kernels(device, tmp_path, *both(device, precision, layout))
    seen = []
    with kf.load_model(
        path, device, packed, precision, progress=lambda *args: seen.append(args)
    ) as model:
        name = layout_name(layout, get_family("gemv").precision(precision))
        assert all(name in found for found in layouts(model).values())
        whole, _ = model.forward(TOKENS, full_output=True)
        np.testing.assert_allclose(whole, expected, atol=2e-4)
        single, _ = model.forward(TOKENS[:1])
        np.testing.assert_allclose(single, expected[0], atol=2e-4)
    done = [number for number, _, _ in seen]
    (total,) = {total for _, total, _ in seen}
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] <= total
    assert "emb.weight" in {name for _, _, name in seen}


def test_a_packed_model_gives_the_golden_logits(device, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the checkout: the golden vectors are there")
    path = tmp_path / "v7.safetensors"
    arrays = from_golden(SHARED / "golden_v7.npz", path)
    packed = kernels(device, tmp_path, *both(device, "f32", "by4"))
    with kf.load_model(path, device, packed, "f32") as model:
        assert {o for found in layouts(model).values() for o in found} == {"M/4 K/4 M%4 K%4"}
        logits, _ = model.forward(arrays["tokens"].tolist(), full_output=True)
    assert np.abs(logits - arrays["logits_seq"]).max() < 1e-3


def test_a_matrix_that_gemm_wants_otherwise_is_row_major_for_both(device, tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=128)
    gemv, gemm = both(device, "f32", "by8")[0], timed(device, "gemm", "f32", "rows", 9)
    with kf.load_model(path, device, kernels(device, tmp_path, gemv, gemm), "f32") as model:
        assert layouts(model) == {"gemv": {""}, "gemm": {""}}


def test_a_matrix_that_may_go_in_pages_stays_row_major(device, tmp_path, monkeypatch):
    path = random_rwkv7(tmp_path / "m.safetensors", layers=1, width=64, vocab=5003)
    expected, _ = kf.load_reference(path, np.float64, "f32").forward(TOKENS)
    small = replace(device.info, max_storage_buffer=64 * 4 * 1024 + 60_000)
    packed = kernels(device, tmp_path, *both(device, "f32", "by8"))
    monkeypatch.setattr(device, "info", small)
    with kf.load_model(path, device, packed, "f32") as model:
        head = {c.selection.entry.signature.layouts for c in model.calls(1) if "head" in c.label}
        assert head == {()}
        assert layouts(model)["gemv"] == {"", "M/8 K/4 M%8 K%4"}
        np.testing.assert_allclose(model.forward(TOKENS)[0], expected, atol=1e-4)
