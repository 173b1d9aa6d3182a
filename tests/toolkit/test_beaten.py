"""What never wins keeps its figures in a bundle, not its module, and the same is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import kernelforge_runtime as kf
from kernelforge.compile import compile_variant
from kernelforge.families import get_family, load_families
from kernelforge.pack import Winner, pack
from kernelforge.pack.beaten import with_beaten
from kernelforge_runtime.abi.device_info import GENERIC
from kernelforge_runtime.abi.module import ShaderModule
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, Fingerprint, KernelSet, Manifest, open_bundle
from kernelforge_runtime.bundle.fusion import FUSED, needs_figures, takes_fused
from kernelforge_runtime.dtypes import DTYPES, F16, F32
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.ops.weight_layout import choose_layouts
from kernelforge_runtime.resources import tuned_output_dir
from kernelforge_runtime.vk import Device
from tests.runtime.bundle_files import (
    DEVICE,
    SIGNATURE,
    TOOLCHAIN,
    entry,
    with_constant,
    write_bundle,
)
from tests.toolkit.test_pack import candidate, contents

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "runtime" / "demo" / "kjv-rwkv7-2.6m.safetensors"
LONG = {"H": 3, "N": 64, "B": 1}


def manifest(entries: Sequence[Entry]) -> Manifest:
    """Of a device, with these entries."""
    return Manifest(Fingerprint.of(DEVICE), TOOLCHAIN, tuple(entries))


def beaten(*entries: Entry) -> list[tuple[str, str]]:
    """Family and problem of what is beaten."""
    return [(e.family, str(e.problem)) for e in with_beaten(manifest(entries)) if e.beaten]


def wkv(family: str, tokens: int, ns: int) -> Entry:
    return entry(Problem(T=tokens, **LONG), family, median_ns=ns)


def test_a_rival_is_beaten_at_those_problems_where_the_usual_family_is_as_fast() -> None:
    entries = [
        wkv("wkv7", 16, 100), wkv("wkv7_chunk", 16, 150), wkv("wkv7", 64, 400),
        wkv("wkv7_chunk", 64, 400), wkv("wkv7", 256, 1600), wkv("wkv7_chunk", 256, 900),
        wkv("wkv7_chunk", 1024, 9000),
    ]  # fmt: skip
    assert beaten(*entries) == [("wkv7_chunk", "T16.H3.N64.B1"), ("wkv7_chunk", "T64.H3.N64.B1")]


def test_where_nothing_was_measured_and_where_inputs_are_rounded_nothing_is_beaten() -> None:
    assert beaten(wkv("wkv7", 16, 0), wkv("wkv7_chunk", 16, 0)) == []
    assert beaten(wkv("wkv7", 16, 100), wkv("wkv7_chunk", 16, 0)) == []
    size = Problem(M=64, K=64, S=1, T=1, X=32, Y=32)
    assert beaten(entry(size, "gemv"), entry(size, "gemv_dot", median_ns=9000)) == []


def test_a_fused_kernel_is_beaten_where_its_parts_are_as_fast_together() -> None:
    own = {"T": 1, "H": 3, "N": 64}
    parts = [
        entry(Problem(**own, P=704), "rwkv7_gates", median_ns=50),
        entry(Problem(**own, B=1), "wkv7", median_ns=60),
        entry(Problem(**own), "rwkv7_readout", median_ns=40),
    ]
    whole = Problem(**own, P=704, B=1)
    for ns, lost in ((149, []), (150, [("rwkv7_mix", str(whole))])):
        assert beaten(*parts, entry(whole, "rwkv7_mix", median_ns=ns)) == lost
    assert beaten(*parts[:2], entry(whole, "rwkv7_mix", median_ns=900)) == []


def layout(name: str) -> Entry:
    weight = replace(SIGNATURE.bindings[0], name="weight", shape=("M", "K"), layout=name)
    return replace(entry(), signature=replace(SIGNATURE, bindings=(weight, SIGNATURE.bindings[1])))


def product(family: str, name: str, ns: int, tokens: int = 1, **changes: int) -> Entry:
    sizes = {"M": 64, "K": 64, "S": 1, "T": tokens, "X": 32, "Y": 32, **changes}
    return replace(layout(name), family=family, problem=Problem(**sizes), median_ns=ns)


def test_a_fused_product_in_a_layout_that_its_matrix_never_has_is_beaten() -> None:
    entries = [
        product("gemv", "", 100), product("gemv", "M K+32", 500),
        product("gemm", "", 900, 256), product("gemm", "M K+32", 900, 256),
        entry(Problem(T=1, C=64, S=1, X=32), "norm_shift", median_ns=50),
        product("norm_gemv", "", 120), product("norm_gemv", "M K+32", 130),
    ]  # fmt: skip
    found = [e for e in with_beaten(manifest(entries)) if e.beaten]
    assert [(e.family, e.median_ns) for e in found] == [("norm_gemv", 130)]
    # Until prompts were tuned, that layout may still be the one.
    few = [e for e in entries if e.family != "gemm"]
    assert not any(e.beaten for e in with_beaten(manifest(few)))


def opened(folder: Path, entries: Sequence[Entry]) -> Bundle:
    return open_bundle(write_bundle(folder, DEVICE, list(entries)), DEVICE)


def test_of_a_beaten_kernel_only_the_figures_are_there(tmp_path: Path) -> None:
    entries = [
        wkv("wkv7", 16, 100), replace(wkv("wkv7_chunk", 16, 150), beaten=True),
        wkv("wkv7", 256, 1600), wkv("wkv7_chunk", 256, 900),
    ]  # fmt: skip
    bundle = opened(tmp_path, entries)
    assert [e.median_ns for e in bundle.entries if e.family == "wkv7_chunk"] == [900]
    assert sum(e.family == "wkv7_chunk" for e in bundle.manifest.entries) == 2
    kernels = KernelSet([bundle])
    chosen = [
        kernels.select("wkv7", "f32", Problem(T=tokens, **LONG)).entry.family
        for tokens in (16, 32, 63, 65, 256, 900)
    ]
    assert chosen == ["wkv7", "wkv7", "wkv7", "wkv7_chunk", "wkv7_chunk", "wkv7_chunk"]
    # Said to be beaten, it is not taken whatever its figures say.
    entries[1] = replace(entries[1], median_ns=1)
    lying = KernelSet([opened(tmp_path / "lying", entries)])
    assert lying.select("wkv7", "f32", Problem(T=16, **LONG)).entry.family == "wkv7"


def test_beaten_is_true_or_not_there() -> None:
    text = manifest([replace(entry(), beaten=True)]).to_bytes()
    assert Manifest.parse(text).entries[0].beaten
    for other in (b"false", b"1", b"null", b'"true"'):
        with pytest.raises(BundleError, match=r"entries\[0\]: beaten: expected true or nothing"):
            Manifest.parse(text.replace(b'"beaten": true', b'"beaten": ' + other))


def test_a_beaten_kernel_is_not_fused_and_no_other_bundle_s_in_its_place(tmp_path: Path) -> None:
    size = Problem(N=64)
    parts = [("one", "f32", size), ("two", "f32", size)]
    both = [entry(size, "one", median_ns=50), entry(size, "two", median_ns=60)]
    lost = opened(tmp_path / "a", [*both, entry(size, "whole", median_ns=120, beaten=True)])
    other = opened(tmp_path / "b", [entry(size, "whole", median_ns=1)])
    for otherwise in (True, False):
        for bundles in ([lost], [lost, other]):
            assert not takes_fused(KernelSet(bundles), ("whole", "f32", size), parts, otherwise)
        assert takes_fused(KernelSet([other, lost]), ("whole", "f32", size), parts, otherwise)


def decisions(kernels: KernelSet) -> Iterator[object]:
    """What the runtime asks of these kernels, at what they were tuned for and beside it.

    Whether to fuse is asked where both ways were measured, in this layout: elsewhere it is a guess
    from other sizes, from which a fused kernel that lost at its own is left out.
    """
    measured = {
        (e.family, e.precision, e.problem, e.signature.layouts)
        for e in kernels.bundles[0].manifest.entries
    }
    for e in kernels.bundles[0].manifest.entries:
        form, dims = e.precision, dict(e.problem)
        matrix = {"M", "K"} <= dims.keys()
        layouts = {e.signature.layouts}
        if matrix:
            chosen = [
                choose_layouts(kernels, DTYPES[form], dims["M"], dims["K"], x) for x in (F32, F16)
            ]
            yield chosen
            layouts = {*chosen}
        for tokens in (1, 2, 5, 8, 16, 40, 256):
            problem = Problem(**{**dims, **({"T": tokens} if "T" in dims else {})})
            for layout in sorted(layouts):
                if e.family in FUSED:
                    fused = FUSED[e.family]
                    for bits in (16, 32):
                        parts = fused.parts(form, problem, layout, bits)
                        if not measured >= {(e.family, form, problem, layout), *parts}:
                            continue
                        yield takes_fused(
                            kernels, (e.family, form, problem, layout), parts, fused.unmeasured
                        )
                elif not needs_figures(e.family):
                    found = kernels.find(e.family, form, problem, layout)
                    yield None if found is None else found.entry.variant


def tuned() -> tuple[Bundle, Bundle]:
    """The bundle of this repository as if nothing were beaten, and what is left of it."""
    found = open_bundle(tuned_output_dir() / "llvmpipe")
    every = tuple(replace(e, beaten=False) for e in found.manifest.entries)
    whole = replace(found, manifest=replace(found.manifest, entries=every))
    less = replace(whole, manifest=replace(whole.manifest, entries=with_beaten(whole.manifest)))
    assert len(less.entries) < len(whole.entries) == len(less.manifest.entries)
    return whole, less


def generic(device: Device | None = None) -> tuple[Bundle, Bundle]:
    """The generic bundle with what needs figures (if it still has it), and without."""
    found = open_bundle(tuned_output_dir() / "generic", device and device.info)
    kept = tuple(e for e in found.manifest.entries if not needs_figures(e.family))
    return found, replace(found, manifest=replace(found.manifest, entries=kept))


def test_the_tuned_bundle_of_this_repository_chooses_the_same_with_fewer_modules() -> None:
    for rounding in ("never", "faster"):
        whole, less = (
            KernelSet(pair).with_rounding(rounding) for pair in zip(tuned(), generic(), strict=True)
        )
        before = list(decisions(whole))
        assert len(before) > 1000
        assert list(decisions(less)) == before


@pytest.mark.vulkan
def test_a_model_s_plans_are_the_same_with_fewer_modules(llvmpipe: Device) -> None:
    (whole, less), (bundle, smaller) = tuned(), generic(llvmpipe)
    plans = []
    for bundles in ([whole, bundle], [less, smaller], [bundle], [smaller]):
        with kf.load_model(DEMO, llvmpipe, KernelSet(bundles), "f16", slots=2) as model:
            plans.append([
                [(call.selection.entry.variant, call.problem) for call in model.calls(*step)]
                for step in ((1, "last"), (2, "last", 2), (8, "last"), (64, "last"))
            ])  # fmt: skip
    assert plans[0] == plans[1] != plans[2]
    assert plans[2] == plans[3]


def test_packing_marks_what_is_beaten_and_keeps_its_figures_when_more_is_packed(
    tmp_path: Path,
) -> None:
    def winner(family: str, tokens: int, ns: float, rows: int):  # type: ignore[no-untyped-def]
        made = candidate(1, ns, rows, family=family, problem=Problem(T=tokens, **LONG))
        return replace(made, module=replace(made.module, name=f"{family}/f32/ROWS{rows}"))

    first = [winner("wkv7", 16, 100, 1), winner("wkv7_chunk", 16, 150, 2)]
    path = pack(tmp_path, DEVICE, first)
    (lost,) = (e for e in open_bundle(path, DEVICE).manifest.entries if e.beaten)
    assert (lost.family, lost.median_ns) == ("wkv7_chunk", 150)
    alone = (path / "kernels.safetensors").stat().st_size
    pack(tmp_path, DEVICE, first[:1])
    assert (path / "kernels.safetensors").stat().st_size == alone
    pack(tmp_path, DEVICE, first)
    more = [winner("wkv7", 256, 1600, 1), winner("wkv7_chunk", 256, 900, 3)]
    pack(tmp_path, DEVICE, more, merge=True)
    bundle = open_bundle(path, DEVICE)
    bundle.check()
    kept = {(e.family, e.problem["T"]): e.beaten for e in bundle.manifest.entries}
    assert kept == {
        ("wkv7", 16): False, ("wkv7_chunk", 16): True, ("wkv7", 256): False,
        ("wkv7_chunk", 256): False,
    }  # fmt: skip
    # Tuned again and faster, it is back.
    pack(tmp_path, DEVICE, [winner("wkv7_chunk", 16, 50, 4)], merge=True)
    assert not any(e.beaten for e in open_bundle(path, DEVICE).manifest.entries)


def timed(module: ShaderModule, family: str, problem: Problem, ns: float) -> Winner:
    return replace(candidate(1, ns, family=family, problem=problem), module=module)


def mix_and_parts(module: ShaderModule) -> tuple[Winner, list[Winner], Callable[[float], Winner]]:
    """The fused kernel at 120 ns, its parts at 30 and 40, and `wkv7`, the third, at what is asked.

    Only of the fused one does it matter which module it has.
    """
    own = {"T": 1, "H": 3, "N": 64}
    names = ("rwkv7_gates", "rwkv7_readout", "wkv7")
    other = [ShaderModule(f"{n}/f32/OTHER", with_constant(i), SIGNATURE)
             for i, n in enumerate(names)]  # fmt: skip
    parts = [
        timed(other[0], names[0], Problem(**own, P=704), 30),
        timed(other[1], names[1], Problem(**own), 40),
    ]
    whole = timed(module, "rwkv7_mix", Problem(**own, P=704, B=1), 120)
    return whole, parts, lambda ns: timed(other[2], names[2], Problem(**own, B=1), ns)


def test_a_fused_kernel_comes_back_and_goes_again_as_its_parts_are_tuned_anew(
    tmp_path: Path,
) -> None:
    family = get_family("rwkv7_mix")
    params = family.default("f32", GENERIC, family.default_problems[0])
    whole, parts, wkv7 = mix_and_parts(compile_variant(family, "f32", params))
    pack(tmp_path / "merged", DEVICE, [whole, *parts, wkv7(50)])
    for at, (ns, lost) in enumerate(((60, False), (40, True), (51, False))):
        path = pack(tmp_path / "merged", DEVICE, [wkv7(ns)], merge=True)
        once = pack(tmp_path / f"{at}", DEVICE, [whole, *parts, wkv7(ns)])
        assert contents(path) == contents(once)
        bundle = open_bundle(path, DEVICE)
        bundle.check()
        (mix,) = (e for e in bundle.manifest.entries if e.family == "rwkv7_mix")
        assert mix.beaten == lost
        asked = ("rwkv7_mix", "f32", whole.problem)
        apart = FUSED["rwkv7_mix"].parts("f32", whole.problem, (), 32)
        assert takes_fused(KernelSet([bundle]), asked, apart, True) != lost


def test_a_fused_kernel_that_is_wanted_again_and_cannot_be_made_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strange = ShaderModule("rwkv7_mix/f32/NOT_OURS", with_constant(9), SIGNATURE)
    whole, parts, wkv7 = mix_and_parts(strange)
    pack(tmp_path, DEVICE, [whole, *parts, wkv7(50)])
    assert caplog.messages == []
    path = pack(tmp_path, DEVICE, [wkv7(60)], merge=True)
    (said,) = caplog.messages
    assert said == (
        "no longer beaten, but today's toolkit makes another kernel of it: rwkv7_mix f32 "
        "B1.H3.N64.P704.T1 left out; tune again what the model needs"
    )
    assert {e.family for e in open_bundle(path).manifest.entries} == {w.family for w in parts} | {
        "wkv7"
    }


def test_what_is_beaten_follows_from_the_figures_whatever_an_older_bundle_says() -> None:
    found = open_bundle(tuned_output_dir() / "llvmpipe").manifest
    marks = []
    for every in (True, False):
        marked = tuple(replace(e, beaten=every) for e in found.entries)
        marks.append([e.beaten for e in with_beaten(replace(found, entries=marked))])
    assert marks[0] == marks[1] == [e.beaten for e in found.entries]
    assert 0 < sum(marks[0]) < len(found.entries)


def test_what_is_only_taken_when_it_was_measured_is_not_in_the_generic_bundle() -> None:
    never = {name for name in load_families() if needs_figures(name)}
    assert {"gemm_half", "wkv6_chunk", "wkv7_chunk", "norm_gemv"} <= never
    assert never.isdisjoint({"gemv", "gemv_dot", "gemm", "wkv7", "rwkv7_mix", "norm_shift"})
