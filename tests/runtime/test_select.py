"""Which kernel a problem gets."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, KernelSet, Match, open_bundle, select
from kernelforge_runtime.errors import BundleError
from tests.runtime.bundle_files import DEVICE, SIBLING, SIGNATURE, STRANGER, entry, write_bundle


def opened(folder: Path, entries: list[Entry], tuned_on: DeviceInfo = DEVICE) -> Bundle:
    return open_bundle(write_bundle(folder, tuned_on, entries), DEVICE)


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    sizes = ({"M": 64, "K": 64}, {"M": 4096, "K": 64}, {"M": 64, "K": 4096})
    return [
        opened(tmp_path / "own", [entry(Problem(**s)) for s in sizes]),
        opened(
            tmp_path / "generic",
            [entry(Problem(M=256, K=256)), entry(Problem(M=1, K=1), "other")],
            GENERIC,
        ),
    ]


def test_select_prefers_exact_problem_over_nearest(bundles: list[Bundle]) -> None:
    found = select(bundles, "saxpy", "f32", Problem(K=4096, M=64))
    assert found.entry.problem == Problem(M=64, K=4096)
    assert (found.match, found.distance, found.bundle) == (Match.EXACT, 0.0, bundles[0])
    assert found.module.name == found.entry.variant


def test_select_takes_the_nearest_problem_by_aspect(bundles: list[Bundle]) -> None:
    found = select(bundles, "saxpy", "f32", Problem(M=2048, K=128))
    assert found.entry.problem == Problem(M=4096, K=64)
    assert found.match is Match.NEAREST_PROBLEM
    assert found.distance == 2.0
    # The generic bundle has an exact entry, but what was tuned here goes first.
    found = select(bundles, "saxpy", "f32", Problem(M=256, K=256))
    assert found.match is Match.NEAREST_PROBLEM


def test_ties_are_settled_by_order(bundles: list[Bundle]) -> None:
    found = select(bundles, "saxpy", "f32", Problem(M=512, K=512))
    assert found.entry.problem == Problem(M=64, K=64)
    found = select(bundles, "saxpy", "f32", Problem(M=4096, K=4096))
    assert found.entry.problem == Problem(M=4096, K=64) or found.entry.problem["K"] == 4096
    assert found.entry == min(
        (e for e in bundles[0].entries if e.problem != Problem(M=64, K=64)), key=lambda e: e.key
    )


def test_what_the_own_bundle_lacks_comes_from_the_next(bundles: list[Bundle]) -> None:
    found = select(bundles, "other", "f32", Problem(M=5, K=5))
    assert (found.match, found.bundle) == (Match.GENERIC, bundles[1])
    assert found.distance > 0


def test_other_dimensions_are_not_comparable(bundles: list[Bundle]) -> None:
    with pytest.raises(BundleError, match="no kernel for saxpy f32 M64: "):
        select(bundles, "saxpy", "f32", Problem(M=64))


def test_compiled_in_dimensions_must_fit(tmp_path: Path) -> None:
    fixed = replace(SIGNATURE, fixed=(("K", 64),))
    own = opened(tmp_path / "own", [entry(Problem(M=8, K=64), signature=fixed)])
    generic = opened(tmp_path / "generic", [entry(Problem(M=1, K=1))], GENERIC)
    assert select([own, generic], "saxpy", "f32", Problem(M=9, K=64)).bundle is own
    assert select([own, generic], "saxpy", "f32", Problem(M=8, K=65)).bundle is generic


def test_entries_of_another_device_say_so(tmp_path: Path) -> None:
    for device in (SIBLING, STRANGER):
        bundle = opened(tmp_path / device.slug, [entry()], device)
        assert select([bundle], "saxpy", "f32", Problem(N=1024)).match is Match.SIMILAR_DEVICE


def test_nothing_found_names_what_was_asked_and_what_to_run(bundles: list[Bundle]) -> None:
    own = bundles[0].path
    with pytest.raises(BundleError) as caught:
        select(bundles, "gemv", "q8", Problem(M=1, K=2))
    assert str(caught.value) == (
        f"no kernel for gemv q8 M1.K2: {own}, {bundles[1].path} has no gemv; "
        "tune it: kernelforge tune --family gemv --problem M=1,K=2"
    )
    with pytest.raises(BundleError, match="has saxpy in f32; tune it"):
        select(bundles, "saxpy", "q8", Problem(M=1, K=2))
    with pytest.raises(BundleError, match="no bundle has no gemv"):
        select([], "gemv", "q8", Problem(M=1, K=2))


def test_a_skipped_kernel_is_named_with_its_reason(tmp_path: Path) -> None:
    needs = replace(SIGNATURE, features=("float16",))
    bundle = opened(tmp_path, [entry(signature=needs)])
    with pytest.raises(BundleError, match=r"cannot run here \(needs float16\); use another"):
        select([bundle], "saxpy", "f32", Problem(N=1024))


def test_a_kernel_set_is_the_devices_bundle_before_the_generic_one(tmp_path: Path) -> None:
    write_bundle(tmp_path / "generic", GENERIC, [entry(family="scale")])
    write_bundle(tmp_path / "example-x1", DEVICE)
    kernels = KernelSet.open(DEVICE, search=[tmp_path])
    assert [bundle.slug for bundle in kernels.bundles] == ["example-x1", "generic"]
    assert kernels.select("saxpy", "f32", Problem(N=1024)).match is Match.EXACT
    assert kernels.select("scale", "f32", Problem(N=1024)).match is Match.GENERIC
    again = kernels.select("scale", "f32", Problem(N=1024))
    assert again is kernels.select("scale", "f32", Problem(N=1024))
    assert kernels.describe().splitlines() == [
        f'using the bundle in {tmp_path / "example-x1"}, tuned for "example-x1" and this driver.',
        f"{tmp_path / 'example-x1'}: 1 kernels, tuned on this device and driver",
        f"{tmp_path / 'generic'}: 1 kernels, generic",
    ]
    assert len(kernels.sha256) == 33


def test_a_kernel_set_can_be_generic_alone(tmp_path: Path) -> None:
    write_bundle(tmp_path / "generic", GENERIC)
    kernels = KernelSet.open(DEVICE, search=[tmp_path])
    assert [bundle.slug for bundle in kernels.bundles] == ["generic"]
    assert kernels.select("saxpy", "f32", Problem(N=3)).match is Match.GENERIC


def test_a_kernel_set_passes_over_a_damaged_bundle_unless_it_was_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(tmp_path / "generic", GENERIC)
    own = write_bundle(tmp_path / "example-x1", DEVICE)
    kernels = bytearray((own / "kernels.safetensors").read_bytes())
    kernels[-1] ^= 1
    (own / "kernels.safetensors").write_bytes(kernels)
    with caplog.at_level(logging.WARNING):
        found = KernelSet.open(DEVICE, search=[tmp_path])
    assert [bundle.slug for bundle in found.bundles] == ["generic"]
    assert found.located is not None
    assert "using generic" in found.located.reason
    assert "is damaged" in caplog.text
    with pytest.raises(BundleError, match="is damaged"):
        KernelSet.open(DEVICE, own, search=[tmp_path])
    with pytest.raises(BundleError, match="no generic one"):
        KernelSet.open(DEVICE, search=[own.parent / "nowhere"])


def pair(size: int, multiple: int, aligned_ns: int = 900) -> list[Entry]:
    """A kernel for all sizes, and one for multiples."""
    aligned = replace(SIGNATURE, multiples=(("N", multiple),))
    return [
        entry(Problem(N=size)),
        entry(Problem(N=size), signature=aligned, median_ns=aligned_ns),
    ]


@pytest.mark.parametrize("size", [1, 31, 33, 63, 65, 96, 127, 1000, 1023, 1025, 2**31 - 1])
def test_a_kernel_for_multiples_is_never_chosen_for_a_problem_with_a_rest(
    tmp_path: Path, size: int
) -> None:
    """Nor for the nearest problem, nor if nothing nearer than another bundle is left."""
    own = opened(tmp_path / "own", [*pair(64, 32), *pair(1024, 128)])
    multiples = select([own], "saxpy", "f32", Problem(N=size)).entry.signature.multiples
    assert all(size % of == 0 for _, of in multiples)
    assert bool(multiples) is (size == 96)
    only = opened(tmp_path / "only", [e for e in pair(1024, 128) if e.signature.multiples])
    generic = opened(tmp_path / "generic", [entry(Problem(N=7))], GENERIC)
    assert select([only, generic], "saxpy", "f32", Problem(N=size)).bundle is generic
    with pytest.raises(BundleError, match="no kernel for saxpy f32"):
        select([only], "saxpy", "f32", Problem(N=size))


def test_of_a_pair_the_faster_that_serves_the_problem_is_taken(tmp_path: Path) -> None:
    own = opened(tmp_path / "own", [*pair(64, 32), *pair(1024, 128, aligned_ns=2000)])
    assert len(own.entries) == 4
    assert select([own], "saxpy", "f32", Problem(N=64)).entry.signature.multiples
    assert select([own], "saxpy", "f32", Problem(N=128)).entry.signature.multiples
    assert not select([own], "saxpy", "f32", Problem(N=1024)).entry.signature.multiples
    assert select([own], "saxpy", "f32", Problem(N=1024)).match is Match.EXACT
