"""Command buffers: copies, fills, submits, and waits that end."""

from contextlib import closing

import numpy as np
import pytest

from kernelforge_runtime.errors import DeviceError, DeviceLostError
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import CommandBuffer, open_device
from tests.runtime.kernels import slow

pytestmark = pytest.mark.vulkan


def test_copies_and_fills_run_in_order_behind_barriers(device):
    with (
        closing(device.buffer(64)) as a,
        closing(device.buffer(64)) as b,
        CommandBuffer(device, "copies") as commands,
    ):
        a.fill(1)
        b.fill(2)
        commands.begin()
        commands.copy(a, 0, b, 16, 32)
        commands.barrier()
        commands.fill(a, 3, 16, 16)
        commands.barrier()
        commands.copy(a, 16, b, 0, 16)
        commands.end()
        commands.submit()
        commands.wait(10)
        assert a.download(np.uint32).tolist() == [1] * 4 + [3] * 4 + [1] * 8
        assert b.download(np.uint32).tolist() == [3] * 4 + [1] * 8 + [2] * 4


def test_a_command_buffer_is_submitted_again_after_a_wait(device):
    with closing(device.buffer(16)) as buffer, CommandBuffer(device) as commands:
        commands.begin()
        commands.fill(buffer, 5)
        commands.end()
        for _ in range(3):
            buffer.fill(0)
            commands.submit()
            commands.wait(10)
            assert (buffer.download(np.uint32) == 5).all()


def test_a_second_submit_before_the_wait_is_refused(device):
    with closing(device.buffer(16)) as buffer, CommandBuffer(device, "twice") as commands:
        commands.begin()
        commands.fill(buffer, 5)
        commands.end()
        commands.submit()
        with pytest.raises(DeviceError, match="submitting 'twice': it is still running"):
            commands.submit()
        commands.wait(10)
        commands.wait(10)


def test_waiting_without_a_submit_returns_at_once(llvmpipe):
    with CommandBuffer(llvmpipe) as commands:
        commands.begin()
        commands.end()
        commands.wait(10)


@pytest.mark.glslang
@pytest.mark.parametrize("name", ["llvmpipe", "swiftshader"])
def test_a_wait_that_runs_out_names_the_step_and_the_device_still_closes(name):
    try:
        device = open_device(name)
    except DeviceError as error:
        pytest.skip(f"no device {name}: {error}")
    with device:
        buffer = device.buffer(4 * 4096)
        dispatch = Dispatch(slow(), {"N": 4096}, {"y": buffer}, {"rounds": 100_000})
        plan = Plan(device, [dispatch], name="rwkv7 greedy of 1 tokens")
        plan.submit()
        with pytest.raises(DeviceLostError) as caught:
            plan.wait(1e-6)
        message = str(caught.value)
        assert "'rwkv7 greedy of 1 tokens'" in message
        assert device.info.name in message
        assert "not done after 1e-06 s" in message
        assert plan.is_running
    assert device.live_objects == {}
    assert device.handle is None
    plan.close()


@pytest.mark.glslang
def test_work_that_timed_out_may_still_be_waited_for(llvmpipe):
    with closing(llvmpipe.buffer(4 * 4096)) as buffer:
        dispatch = Dispatch(slow(), {"N": 4096}, {"y": buffer}, {"rounds": 20_000})
        with Plan(llvmpipe, [dispatch]) as plan:
            plan.submit()
            with pytest.raises(DeviceLostError):
                plan.wait(0)
            plan.wait(60)
            plan.run(60)
