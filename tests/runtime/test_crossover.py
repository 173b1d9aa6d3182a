"""Which family does a call that several can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, KernelSet, open_bundle
from kernelforge_runtime.bundle import crossover as crossovers
from kernelforge_runtime.bundle.crossover import RIVALS, Rival, contenders, fastest
from tests.runtime.bundle_files import DEVICE, SIGNATURE, entry, write_bundle

BOTH = ("usual", "rival")


def size(n: int) -> Problem:
    return Problem(N=n)


def measured(family: str, times: dict[int, int]) -> list[Entry]:
    return [entry(size(n), family, median_ns=ns) for n, ns in times.items()]


def opened(folder: Path, entries: Sequence[Entry], device: DeviceInfo = DEVICE) -> Bundle:
    return open_bundle(write_bundle(folder, device, list(entries)), DEVICE)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The rival wins from 64 on; at 16 it was not measured."""
    usual = measured("usual", {16: 10, 32: 200, 64: 400, 256: 1600})
    return opened(tmp_path, [*usual, *measured("rival", {32: 300, 64: 300, 256: 500})])


def test_the_faster_one_of_two_that_were_measured_on_the_problem_is_taken(bundle: Bundle) -> None:
    assert fastest([bundle], BOTH, "f32", size(32)) == "usual"
    assert fastest([bundle], BOTH, "f32", size(64)) == "rival"


def test_between_tuned_problems_the_nearest_that_both_have_decides(bundle: Bundle) -> None:
    assert fastest([bundle], BOTH, "f32", size(100)) == "rival"
    assert fastest([bundle], BOTH, "f32", size(40)) == "usual"
    assert fastest([bundle], BOTH, "f32", size(4096)) == "rival"
    assert fastest([bundle], BOTH, "f32", size(16)) == "usual"  # by 32: at 16 only one was measured


def test_of_several_rivals_the_one_that_gains_most_is_taken(tmp_path: Path) -> None:
    entries = [*measured("usual", {64: 400}), *measured("b", {64: 300}), *measured("c", {64: 100})]
    found = fastest([opened(tmp_path, entries)], ("usual", "b", "c"), "f32", size(64))
    assert found == "c"


def test_without_figures_of_both_the_usual_family_is_taken(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", measured("usual", {64: 400}))
    other = opened(tmp_path / "other", measured("rival", {64: 1}))
    unmeasured = [*measured("usual", {64: 0}), *measured("rival", {64: 0})]
    generic = opened(tmp_path / "generic", unmeasured, GENERIC)
    for bundles in ([], [one], [other], [generic], [one, other, generic]):
        assert fastest(bundles, BOTH, "f32", size(64)) == "usual"


def test_a_precision_is_judged_by_its_own_figures(tmp_path: Path) -> None:
    entries = [*measured("usual", {64: 400}), *measured("rival", {64: 100})]
    assert fastest([opened(tmp_path, entries)], BOTH, "f16", size(64)) == "usual"


def test_kernels_of_a_rival_are_given_to_who_asks_for_the_usual_family(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Rival("rival", lambda problem: problem["N"] >= 64)
    monkeypatch.setitem(crossovers.RIVALS, "usual", (large,))
    kernels = KernelSet([bundle])
    assert kernels.select("usual", "f32", size(256)).entry.family == "rival"
    assert kernels.select("usual", "f32", size(32)).entry.family == "usual"
    assert kernels.select("rival", "f32", size(32)).entry.family == "rival"


def test_where_times_scale_tiles_take_over_from_the_tokens_that_fill_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one 100 ns each; a tile of 32 tokens takes 300 ns, full or not."""
    alone = replace(SIGNATURE, grid=Grid((CeilDiv("N", 64),), (CeilDiv("T", 1),)))
    tiled = replace(SIGNATURE, grid=Grid((CeilDiv("N", 64),), (CeilDiv("T", 32),)))
    one, many = Problem(N=64, T=1), Problem(N=64, T=256)
    usual = [entry(one, "usual", median_ns=100, signature=alone)]
    rival = [entry(many, "rival", median_ns=2400, signature=tiled)]
    kernels = KernelSet([opened(tmp_path, [*usual, *rival])])

    def chosen(tokens: int) -> str:
        return kernels.select("usual", "f32", Problem(N=64, T=tokens)).entry.family

    monkeypatch.setitem(crossovers.RIVALS, "usual", (Rival("rival", lambda p: p["T"] > 1),))
    assert chosen(8) == "usual"  # nothing of both was measured
    kernels = kernels.with_rounding("never")
    scaling = Rival("rival", lambda p: p["T"] > 1, scales=True)
    monkeypatch.setitem(crossovers.RIVALS, "usual", (scaling,))
    assert [chosen(t) for t in (1, 2, 3, 4, 8)] == ["usual", "usual", "usual", "rival", "rival"]


def test_a_rival_that_rounds_its_inputs_is_only_for_whom_that_was_asked_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding = Rival("rival", lambda problem: True, rounds=True)
    monkeypatch.setitem(crossovers.RIVALS, "usual", (rounding,))
    exact = KernelSet([bundle])
    faster, always = exact.with_rounding("faster"), exact.with_rounding("always")

    def chosen(kernels: KernelSet) -> list[str]:
        return [kernels.select("usual", "f32", size(n)).entry.family for n in (32, 256)]

    assert chosen(exact) == ["usual", "usual"]
    assert chosen(faster) == ["usual", "rival"]
    assert chosen(always) == ["rival", "rival"]
    assert chosen(always.with_rounding("never")) == ["usual", "usual"]


def test_rounding_always_takes_the_usual_family_where_no_rival_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounding = Rival("rival", lambda problem: True, rounds=True)
    monkeypatch.setitem(crossovers.RIVALS, "usual", (rounding,))
    kernels = KernelSet([opened(tmp_path, measured("usual", {64: 1}))]).with_rounding("always")
    assert kernels.select("usual", "f32", size(64)).entry.family == "usual"


def test_products_of_halves_are_for_activations_of_halves_only() -> None:
    product = {"M": 64, "K": 64, "S": 1, "T": 64, "Y": 32}
    assert contenders("gemm", Problem(**product, X=32)) == ("gemm",)
    assert contenders("gemm", Problem(**product, X=16)) == (
        "gemm", "gemm_coop", "gemm_coop2", "gemm_half",
    )  # fmt: skip
    assert contenders("gemv", Problem(**{**product, "T": 1}, X=16)) == ("gemv",)
    assert contenders("gemv", Problem(**{**product, "T": 2}, X=16)) == ("gemv", "gemm")


def test_recurrences_go_in_chunks_only_where_sequences_are_long() -> None:
    def forms(tokens: int, sequences: int) -> tuple[str, ...]:
        return contenders("wkv7", Problem(T=tokens, H=12, N=64, B=sequences))

    assert forms(1, 1) == forms(8, 1) == forms(64, 64) == forms(64, 8) == ("wkv7",)
    assert forms(16, 1) == forms(256, 8) == ("wkv7", "wkv7_chunk", "wkv7_chunk_coop")


def test_a_crossover_over_tokens_is_looked_for_at_fewer_of_them() -> None:
    rival, with_matrices = RIVALS["wkv6"]
    own = {"H": 12, "N": 64, "B": 1, "P": 3072}
    assert with_matrices.along == rival.along
    assert rival.lengths(Problem(T=256, D=256, **own)) == [
        Problem(T=64, D=64, **own),
        Problem(T=16, D=16, **own),
    ]
    assert rival.lengths(Problem(T=64, D=1, **own)) == [Problem(T=16, D=1, **own)]
    assert rival.lengths(Problem(T=1, D=1, **own)) == []
    assert all(r.lengths(Problem(M=64, K=64, T=256, X=16)) == [] for r in RIVALS["gemm"])
