"""The variants that conformance takes: the default first, the same each time, all of them valid."""

from __future__ import annotations

import pytest

from kernelforge.families import get_family
from kernelforge_runtime.vk import Device
from tests.families import drawing


@pytest.mark.vulkan
@pytest.mark.parametrize("name", ["gemm", "wkv7", "argmax"])
def test_the_default_and_as_many_others_as_asked_are_drawn(
    name: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "RANDOM_VARIANTS", 7)
    family = get_family(name)
    precision, problem = family.precisions[-1], family.corner_problems[0]
    found, all_there_are = drawing.drawn(family, precision, device, problem)
    assert found[0] == family.default(precision, device.info, problem)
    assert len(found) == 8
    assert all(one not in found[i + 1 :] for i, one in enumerate(found))
    assert not all_there_are
    for params in found:
        assert family.space.refuses(params, device.info, problem) is None
        assert family.fits(precision, params, device.info) is None


@pytest.mark.vulkan
def test_problems_that_allow_the_same_variants_are_given_the_same(llvmpipe: Device) -> None:
    family = get_family("wkv7")
    alike = [problem for problem in family.corner_problems if problem["N"] == 64]
    assert len(alike) > 1
    first, *others = (drawing.drawn(family, family.precisions[0], llvmpipe, p) for p in alike)
    assert all(other == first for other in others)


@pytest.mark.vulkan
def test_a_small_space_is_drawn_whole_and_said_to_be(
    llvmpipe: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "RANDOM_VARIANTS", 10_000)
    family = get_family("copy")
    found, all_there_are = drawing.drawn(
        family, family.precisions[0], llvmpipe, family.corner_problems[0]
    )
    assert all_there_are
    assert len(found) == len(family.valid(family.precisions[0], llvmpipe.info))
