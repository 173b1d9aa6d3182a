"""Every Vulkan object is counted, and gone when its owner is."""

import numpy as np
import pytest

from kernelforge_runtime.abi.signature import PushConstant
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.errors import DeviceError, KernelForgeError
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import CommandBuffer, TimestampPool, list_devices, open_device
from kernelforge_runtime.vk.descriptors import DescriptorPool
from tests.conftest import DEVICES
from tests.runtime.kernels import kernel, plus_one

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.fixture(params=DEVICES)
def fresh(request):
    """A device of the test's own, which the test may close."""
    try:
        device = open_device(request.param)
    except DeviceError as error:
        pytest.skip(f"no device {request.param}: {error}")
    yield device
    device.close()


KINDS = {
    "buffer": lambda device: device.buffer(64),
    "pipeline": lambda device: device.pipeline(plus_one()),
    "command buffer": lambda device: CommandBuffer(device),
    "timestamp pool": lambda device: TimestampPool(device, 2),
    "descriptor pool": lambda device: DescriptorPool(device, 1, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_open_is_released_with_the_device(fresh, kind):
    item = KINDS[kind](fresh)
    assert fresh.live_objects == {kind: 1}
    fresh.close()
    assert fresh.live_objects == {}
    item.close()  # a second time, after the device: nothing happens
    fresh.close()


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"pipeline"}))
def test_what_is_closed_twice_is_counted_once(device, kind):
    before = device.live_objects.get(kind, 0)
    item = KINDS[kind](device)
    assert device.live_objects[kind] == before + 1
    item.close()
    item.close()
    assert device.live_objects.get(kind, 0) == before


def test_a_plan_left_open_is_released_with_the_device(fresh):
    x, y = fresh.buffer(256), fresh.buffer(256)
    x.fill(0)
    plan = Plan(fresh, [Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})], "ends")
    plan.submit()  # and not waited for
    assert len(fresh.live_objects) >= 4
    fresh.close()
    assert fresh.live_objects == {}
    plan.close()


@pytest.mark.parametrize("name", DEVICES)
def test_opening_and_closing_fifty_times_leaves_nothing(name):
    if not any(name in info.slug for info in list_devices()):
        pytest.skip(f"no device {name}")
    for _ in range(50):
        with open_device(name, validation=False) as device:
            x, y = device.buffer(256), device.buffer(256)
            x.fill(0)
            with Plan(device, [Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})]) as plan:
                plan.run()
            assert (y.download(np.float32) == 1).all()
        assert device.live_objects == {}


def test_replaying_a_plan_a_thousand_times_leaks_nothing(device):
    x, y = device.buffer(256), device.buffer(256)
    x.fill(0)
    with Plan(device, [Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})], "each") as plan:
        plan.run()
        before = device.live_objects
        for _ in range(1000):
            plan.run()
        assert device.live_objects == before
    x.close()
    y.close()


def test_recording_many_plans_leaks_nothing(device):
    x, y = device.buffer(256), device.buffer(256)
    device.pipeline(plus_one())
    before = device.live_objects
    for _ in range(100):
        with Plan(device, [Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})], "ends"):
            pass
    assert device.live_objects == before
    x.close()
    y.close()


def test_a_plan_that_cannot_be_recorded_leaves_nothing_behind(device):
    x, y = device.buffer(256), device.buffer(256)
    good = Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})
    device.pipeline(plus_one())
    before = device.live_objects
    lacking = kernel("if (i < N) y[i] = x[i];", features=("cooperative_matrix",))
    no_constant = kernel("y[i] = x[i] + Q;", constants=(PushConstant("Q", F32),))
    for bad in (lacking, no_constant):
        with pytest.raises(KernelForgeError):
            Plan(device, [good, Dispatch(bad, {"N": 64}, {"x": x, "y": y})], "each")
    after = device.live_objects
    after["pipeline"] = before["pipeline"]  # a pipeline made on the way is kept, and that is fine
    assert after == before
    x.close()
    y.close()
