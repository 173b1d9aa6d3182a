"""Measuring a variant: every way it can end, and what the times rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from kernelforge.errors import MeasureError
from kernelforge.measure import timed_problem
from kernelforge.measure.bench import Bench, measure
from kernelforge.measure.measurement import Outcome
from kernelforge.measure.roofline import rate
from kernelforge.measure.rotation import COLD_BYTES, MOST_COPIES, Rotation
from kernelforge.measure.timed_problem import Effort
from kernelforge.space import Choice, Space
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import DeviceLostError
from kernelforge_runtime.vk import Device
from tests.toolkit.small_family import needs_compiler, signature, small_family

FAULTS = ("none", "wrong", "overrun", "hole", "broken", "slow")
PROBLEM = Problem(M=37, K=64)
QUICK = Effort(sample_ns=2e5, samples=5, longest_sample_ns=2e6)

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.fixture
def device(llvmpipe: Device) -> Device:
    needs_compiler()
    return llvmpipe


@pytest.fixture
def bench(device: Device) -> Iterator[Bench]:
    with Bench(device, small_family(FAULTS), F32, PROBLEM, seed=1, effort=QUICK) as opened:
        yield opened


def params(fault: str, **changes: int) -> dict[str, object]:
    return {"WORKGROUP": 16, "ROWS": 1, "FAULT": fault, **changes}


def test_a_right_variant_has_times_errors_and_hashes(bench: Bench) -> None:
    found = bench.measure(params("none"))
    assert found.outcome is Outcome.OK
    assert found.ok
    assert found.median_ns > 0
    assert 3 <= len(found.samples_ns) <= 5
    assert found.dispatches > 1
    assert found.clock in ("timestamp", "host")
    assert 0 <= found.max_error <= found.tolerance
    assert found.variant == "small/f32/FAULT=none.ROWS1.WORKGROUP16"
    hashes = (found.glsl_sha256, found.template_sha256, found.spirv_sha256)
    assert len(set(hashes)) == 3
    assert all(len(h) == 64 for h in hashes)
    assert found.device == "llvmpipe"


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("wrong", Outcome.WRONG_RESULT),
        ("overrun", Outcome.WRONG_RESULT),
        ("hole", Outcome.WRONG_RESULT),
        ("broken", Outcome.COMPILE_FAILED),
    ],
)
def test_a_faulty_variant_is_an_outcome_with_a_reason_and_no_time(
    bench: Bench, fault: str, outcome: Outcome
) -> None:
    found = bench.measure(params(fault))
    assert found.outcome is outcome
    assert found.reason
    assert "\n" not in found.reason
    assert math.isnan(found.median_ns)
    assert not found.ok


def test_parameters_that_are_not_in_the_space_are_rejected(bench: Bench) -> None:
    found = bench.measure(params("none", WORKGROUP=7))
    assert found.outcome is Outcome.REJECTED
    assert "WORKGROUP" in found.reason


def test_every_variant_is_verified_with_another_seed(bench: Bench) -> None:
    seeds = {bench.measure(params("none", WORKGROUP=w)).seed for w in (8, 16, 32, 64)}
    assert len(seeds) == 4


def test_a_hopeless_variant_is_given_up_early(bench: Bench) -> None:
    best = bench.measure(params("none")).median_ns
    found = bench.measure(params("slow"), incumbent_ns=best / 100)
    assert found.note == "early stop"
    assert len(found.samples_ns) <= 3


def test_the_same_program_is_measured_once(device: Device) -> None:
    same = Space(Choice("WORKGROUP", (16,), 16), Choice("ROWS", (1,), 1),
                 Choice("FAULT", ("none", "nothing"), "none"))  # fmt: skip
    with Bench(device, small_family(space=same), F32, PROBLEM, effort=QUICK) as bench:
        first, second = bench.measure(params("none")), bench.measure(params("nothing"))
    assert second.note == f"same SPIR-V as {first.variant}"
    assert second.samples_ns == first.samples_ns
    assert second.variant != first.variant


def test_a_lost_device_is_an_outcome(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise DeviceLostError("gone")

    monkeypatch.setattr(timed_problem.Timer, "sample", lost)
    found = bench.measure(params("none"))
    assert found.outcome is Outcome.DEVICE_LOST
    assert found.reason == "gone"


def test_a_variant_that_takes_the_driver_too_long_is_rejected(device: Device) -> None:
    hasty = Effort(setup_s=0.0)
    with Bench(device, small_family(), F32, PROBLEM, effort=hasty) as bench:
        found = bench.measure(params("none"))
    assert found.outcome is Outcome.REJECTED
    assert "first run" in found.reason


def test_a_problem_that_cannot_exist_is_an_error(device: Device) -> None:
    with pytest.raises(MeasureError, match="dimensions"):
        measure(device, small_family(), F32, params("none"), Problem(M=4))


def test_device_memory_is_given_back(device: Device) -> None:
    before = device.live_objects.get("buffer", 0)
    measure(device, small_family(), F32, params("none"), Problem(M=512, K=512), effort=QUICK)
    assert device.live_objects.get("buffer", 0) == before


def test_weights_rotate_through_more_than_a_cache_and_the_rest_stays(device: Device) -> None:
    problem = Problem(M=2048, K=2048)
    taken = signature(F32, params("none"))
    rotation = Rotation(device, small_family(), F32, problem, seed=1)
    try:
        copies = rotation.copies(taken)
        assert copies * 4 * 2048 * 2048 >= COLD_BYTES
        assert rotation.cold(taken)
        one, two = rotation.buffers(taken, 0), rotation.buffers(taken, 1)
        assert one["weight"] is not two["weight"]
        assert one["vector"] is two["vector"]
        assert one["result"] is two["result"]
        assert rotation.buffers(taken, copies)["weight"] is one["weight"]
    finally:
        rotation.close()


def test_small_weights_stay_hot(device: Device) -> None:
    taken = signature(F32, params("none"))
    rotation = Rotation(device, small_family(), F32, PROBLEM, seed=1)
    assert rotation.copies(taken) == 1
    assert not rotation.cold(taken)
    middle = Rotation(device, small_family(), F32, Problem(M=128, K=128), seed=1)
    assert middle.copies(taken) == MOST_COPIES


def test_a_rate_is_held_against_the_lower_ceiling() -> None:
    class Ceilings:
        memory_gbps = 20.0
        fma_gflops = 100.0

    found = rate((1e6, 1e6), 1e5, Ceilings())
    assert (found.gbps, found.gflops) == (10.0, 10.0)
    assert (found.bound, found.share) == ("memory", 0.5)
    assert rate((1e8, 1e6), 2e6, Ceilings()).bound == "compute"
    assert math.isnan(rate((1.0, 1.0), math.nan).gbps)
