"""Of bundles that were tuned on other processors, the one is taken that is fastest on this one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from kernelforge.compile import compile_variant
from kernelforge.families.gemv import GEMV
from kernelforge.measure.verify import verify
from kernelforge.pack import pack
from kernelforge.pack.winners import Winner
from kernelforge.render import render
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.bundle import BundleMatch, KernelSet, locate
from kernelforge_runtime.bundle.rivals import remember, remembered
from kernelforge_runtime.dtypes import F16
from kernelforge_runtime.plan import open_kernels
from kernelforge_runtime.vk import Device
from tests.runtime.bundle_files import DEVICE, write_bundle
from tests.toolkit.cli_process import need_compiler

HERE = replace(DEVICE, device_type="cpu", processor="Third 3")
PROBLEM = Problem(M=1024, K=1024, S=1, T=1, X=32, Y=32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("KERNELFORGE_TUNED", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernelforge" / "fastest"


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Bundles of the same device on two processors, none of them this one."""
    places = tmp_path / "tuned"
    first = write_bundle(places / "example-x1", replace(HERE, processor="First 1"))
    return first, write_bundle(places / "example-x1-b", replace(HERE, processor="Second 2"))


class Asked:
    """A judge that counts how often it is asked, and answers with the last one or with nothing."""

    def __init__(self, knows: bool = True) -> None:
        self.knows, self.times = knows, 0

    def __call__(self, rivals: Sequence[Path]) -> Path | None:
        self.times += 1
        return rivals[-1] if self.knows else None


def test_the_judge_is_asked_once_and_its_answer_kept(two: tuple[Path, Path]) -> None:
    first, second = two
    search, judge = [first.parent], Asked()
    alone = locate(HERE, search=search)
    assert (alone.bundle_path, alone.match) == (first, BundleMatch.OTHER_PROCESSOR)
    assert ", one of 2 such: the first model to be loaded will try them all; " in alone.reason
    found = locate(HERE, search=search, judge=judge)
    assert (found.bundle_path, found.match) == (second, BundleMatch.OTHER_PROCESSOR)
    assert ", of 2 such the fastest here; its kernels were verified there" in found.reason
    assert "processor Second 2 (here: Third 3)" in found.reason
    assert locate(HERE, search=search, judge=judge) == found
    assert locate(HERE, search=search) == found  # who only lists devices knows it, too
    assert judge.times == 1


def test_another_processor_driver_or_bundle_is_another_question(two: tuple[Path, Path]) -> None:
    first, second = two
    search, judge = [first.parent], Asked()
    locate(HERE, search=search, judge=judge)
    locate(replace(HERE, processor="Fourth 4"), search=search, judge=judge)
    locate(replace(HERE, driver_info="2.0"), search=search, judge=judge)
    assert judge.times == 3
    write_bundle(second, replace(HERE, processor="Fifth 5"))
    locate(HERE, search=search, judge=judge)
    assert judge.times == 4


def test_who_was_tuned_here_is_taken_unasked(two: tuple[Path, Path]) -> None:
    first, second = two
    judge = Asked()
    there = replace(HERE, processor="Second 2")
    found = locate(there, search=[first.parent], judge=judge)
    assert (found.bundle_path, found.match) == (second, BundleMatch.EXACT)
    newer = locate(replace(there, driver_info="2.0"), search=[first.parent], judge=judge)
    assert (newer.bundle_path, newer.match) == (second, BundleMatch.OTHER_DRIVER)
    card = replace(DEVICE, driver_info="2.0")  # its processor has no part in its speed
    write_bundle(first, DEVICE)
    write_bundle(second, DEVICE)
    assert locate(card, search=[first.parent], judge=judge).bundle_path == first
    assert judge.times == 0


def test_no_answer_is_not_kept(two: tuple[Path, Path], cache: Path) -> None:
    judge = Asked(knows=False)
    for _ in range(2):
        assert locate(HERE, search=[two[0].parent], judge=judge).bundle_path == two[0]
    assert judge.times == 2
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"0" * 64, b"a bundle that is gone"])
def test_a_damaged_answer_is_no_answer(two: tuple[Path, Path], cache: Path, damage: bytes) -> None:
    remember(HERE, two, two[1])
    assert remembered(HERE, two) == two[1]
    (kept,) = cache.iterdir()
    kept.write_bytes(damage)
    assert remembered(HERE, two) is None
    judge = Asked()
    assert locate(HERE, search=[two[0].parent], judge=judge).bundle_path == two[1]
    assert (judge.times, remembered(HERE, two)) == (1, two[1])


def test_a_cache_that_cannot_be_written_costs_a_warning(
    two: tuple[Path, Path], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        found = locate(HERE, search=[two[0].parent], judge=Asked())
    assert found.bundle_path == two[1]
    assert "which bundle is fastest here could not be kept" in caplog.text
    assert cache.read_text() == "a file where the folder should be"


def bundle_of(folder: Path, device: Device, processor: str, **params: object) -> Path:
    """A bundle of one product of a vector, as if tuned on another processor."""
    need_compiler()
    chosen = {**GEMV.default(F16, device.info, PROBLEM), **params}
    module, rendered = compile_variant(GEMV, F16, chosen), render(GEMV, F16, chosen)
    winner = Winner(
        family=GEMV.name,
        precision=F16.name,
        problem=PROBLEM,
        module=module,
        median_ns=1000,
        spread_ns=10,
        trials=1,
        default_ns=1000,
        verification=verify(device, GEMV, F16, module, GEMV.corner_problems[0]),
        template_sha256=rendered.template_sha256,
        glsl_sha256=rendered.sha256,
    )
    return pack(folder, replace(device.info, processor=processor), [winner])


@pytest.mark.vulkan
@pytest.mark.glslang
def test_the_faster_bundle_is_found_by_measuring(device: Device, tmp_path: Path) -> None:
    # What both claim of themselves is the same; one loads word by word and adds in shared memory.
    slow = bundle_of(
        tmp_path / "a", device, "First 1", VEC=1, WORKGROUP=256, LANES=256, ROWS=1, REDUCE="shared"
    )
    fast = bundle_of(tmp_path / "b", device, "Second 2")
    before = device.live_objects.get("buffer")
    kernels = open_kernels(device, search=[slow.parent, fast.parent])
    assert kernels.located is not None
    assert kernels.located.bundle_path == fast
    assert "fastest here" in kernels.located.reason
    assert device.live_objects.get("buffer") == before
    again = KernelSet.open(device.info, search=[fast.parent, slow.parent])
    assert again.located is not None
    assert again.located.bundle_path == fast


@pytest.mark.vulkan
@pytest.mark.glslang
def test_a_damaged_rival_is_passed_over(device: Device, tmp_path: Path) -> None:
    whole = bundle_of(tmp_path / "b", device, "Second 2")
    damaged = bundle_of(tmp_path / "a", device, "First 1", VEC=1)
    kernels = damaged / "kernels.safetensors"
    kernels.write_bytes(kernels.read_bytes()[:-4])
    found = open_kernels(device, search=[damaged.parent, whole.parent])
    assert found.located is not None
    assert found.located.bundle_path == whole
