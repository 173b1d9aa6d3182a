"""When one dispatch stands for several, as the bundles' figures have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kernelforge_runtime.abi.device_info import GENERIC, DeviceInfo
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import Bundle, Entry, KernelSet, open_bundle
from kernelforge_runtime.bundle.fusion import takes_fused
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.ops.builder import PlanBuilder
from tests.runtime.bundle_files import DEVICE, entry, write_bundle

SIZE = Problem(N=64)
WHOLE = ("whole", "f32", SIZE)
PARTS = [("one", "f32", SIZE), ("two", "f32", SIZE)]


def times(**found: int) -> list[Entry]:
    return [entry(SIZE, family, median_ns=ns) for family, ns in sorted(found.items())]


def opened(folder: Path, entries: Sequence[Entry], device: DeviceInfo = DEVICE) -> Bundle:
    return open_bundle(write_bundle(folder, device, list(entries)), DEVICE)


def taken(*bundles: Bundle, otherwise: bool = True) -> bool:
    return takes_fused(KernelSet(bundles), WHOLE, PARTS, otherwise)


def test_the_sum_of_the_parts_is_what_the_fused_kernel_must_beat(tmp_path: Path) -> None:
    faster = opened(tmp_path / "a", times(one=50, two=60, whole=100))
    slower = opened(tmp_path / "b", times(one=50, two=60, whole=120))
    for otherwise in (False, True):
        assert taken(faster, otherwise=otherwise)
        assert not taken(slower, otherwise=otherwise)


def test_a_near_problem_stands_for_one_that_was_not_measured(tmp_path: Path) -> None:
    kernels = KernelSet([opened(tmp_path, times(one=50, two=60, whole=120))])
    near = Problem(N=100)
    parts = [(family, precision, near) for family, precision, _ in PARTS]
    assert not takes_fused(kernels, ("whole", "f32", near), parts, True)


@pytest.mark.parametrize("otherwise", [False, True])
def test_times_of_unlike_numbers_of_tokens_are_not_compared(
    tmp_path: Path, otherwise: bool
) -> None:
    measured = {("one", 8): 50, ("two", 8): 60, ("whole", 1): 20, ("whole", 64): 900}
    entries = [
        entry(Problem(N=64, T=tokens), family, median_ns=ns)
        for (family, tokens), ns in measured.items()
    ]
    kernels = KernelSet([opened(tmp_path, entries)])
    for tokens in (1, 2, 7, 32, 64):
        near = Problem(N=64, T=tokens)
        parts = [(family, precision, near) for family, precision, _ in PARTS]
        assert takes_fused(kernels, ("whole", "f32", near), parts, otherwise) is otherwise


def test_bundles_without_the_fused_kernel_go_on_with_the_parts(tmp_path: Path) -> None:
    assert not taken(opened(tmp_path, times(one=50, two=60)))


def test_bundles_without_a_part_take_the_fused_kernel(tmp_path: Path) -> None:
    assert taken(opened(tmp_path, times(one=50, whole=500)), otherwise=False)


def test_where_nothing_was_measured_the_caller_says_which(tmp_path: Path) -> None:
    generic = opened(tmp_path, times(one=0, two=0, whole=0), GENERIC)
    assert taken(generic, otherwise=True)
    assert not taken(generic, otherwise=False)


def test_parts_tuned_for_the_device_are_not_given_up_for_a_generic_kernel(tmp_path: Path) -> None:
    tuned = opened(tmp_path / "tuned", times(one=50, two=60))
    generic = opened(tmp_path / "generic", times(one=0, two=0, whole=0), GENERIC)
    assert not taken(tuned, generic, otherwise=True)
    half = opened(tmp_path / "half", times(one=50, whole=70))
    assert taken(half, generic, otherwise=True)
    assert not taken(half, generic, otherwise=False)


def test_what_was_decided_against_is_remembered_for_tuning(tmp_path: Path) -> None:
    for whole_ns, forgone in ((100, PARTS), (120, [WHOLE])):
        entries = times(one=50, two=60, whole=whole_ns)
        builder = PlanBuilder(KernelSet([opened(tmp_path / str(whole_ns), entries)]))
        assert builder.fuses(WHOLE, PARTS, True) is (forgone is PARTS)
        assert builder.forgone == forgone


def test_a_kernel_that_is_not_there_is_none_and_an_error_where_it_is_needed(
    tmp_path: Path,
) -> None:
    kernels = KernelSet([opened(tmp_path, times(one=50))])
    assert kernels.find(*WHOLE) is None
    with pytest.raises(BundleError, match="no kernel for whole"):
        kernels.select(*WHOLE)
