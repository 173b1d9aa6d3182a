"""Buffers shared by file descriptor between two logical devices, and between two processes."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import cannot_share, import_buffer, open_device, shared_buffer
from tests.conftest import DEVICES, opened
from tests.runtime.kernels import plus_one

pytestmark = pytest.mark.vulkan
WORDS = np.arange(1, 1025, dtype=np.uint32)


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module", params=DEVICES)
def pair(request):
    """Two logical devices of one physical device, each with an instance of its own."""
    first = opened(request.param)
    if reason := cannot_share(first):
        pytest.skip(reason)
    with open_device(request.param) as second:
        yield first, second


def test_what_one_device_writes_the_other_reads_and_writes_back(pair):
    first, second = pair
    ours = shared_buffer(first, WORDS.nbytes, "ours")
    ours.upload(WORDS)
    ours.hand_over()
    with ours.export() as exported:
        theirs = import_buffer(second, exported, "theirs")
    theirs.take_over()
    np.testing.assert_array_equal(theirs.download(np.uint32), WORDS)
    theirs.upload(WORDS[::-1])
    theirs.hand_over()
    ours.take_over()
    np.testing.assert_array_equal(ours.download(np.uint32), WORDS[::-1])
    ours.close()  # the memory lives on with whoever imported it
    np.testing.assert_array_equal(theirs.download(np.uint32), WORDS[::-1])
    theirs.close()


@pytest.mark.glslang
def test_a_kernel_of_one_device_reads_what_a_kernel_of_the_other_wrote(pair):
    first, second = pair
    values = np.arange(64, dtype=np.float32)
    ours, last = shared_buffer(first, 256, "ours"), second.buffer(256, "last")
    start = first.buffer(256, "start")
    start.upload(values)
    with Plan(first, [Dispatch(plus_one(), {"N": 64}, {"x": start, "y": ours})]) as plan:
        plan.run()
    ours.hand_over()
    with ours.export() as exported:
        theirs = import_buffer(second, exported, "theirs")
    theirs.take_over()
    with Plan(second, [Dispatch(plus_one(), {"N": 64}, {"x": theirs, "y": last})]) as plan:
        plan.run()
    np.testing.assert_array_equal(last.download(np.float32), values + 2)
    for buffer in (ours, theirs, start, last):
        buffer.close()


def test_no_descriptor_and_no_buffer_is_leaked_whatever_fails(pair):
    first, second = pair
    before, held = descriptors(), (first.live_objects, second.live_objects)
    for _ in range(5):
        with shared(first) as (buffer, exported):
            one, two = import_buffer(second, exported, "1"), import_buffer(second, exported, "2")
            wrong = (
                replace(exported, identity="ff/ff"),
                replace(exported, fd=-1),
                replace(exported, fd=10_000),
                replace(exported, memory_type=31),
                replace(exported, allocation_bytes=1),
                replace(exported, nbytes=1 << 40, allocation_bytes=1 << 40),
            )
            for bad in wrong:
                with pytest.raises(DeviceError, match="importing buffer 'bad'"):
                    import_buffer(second, bad, "bad")
            one.close()
            two.close()
            buffer.close()
    assert descriptors() == before
    assert (first.live_objects, second.live_objects) == held


class shared:  # noqa: N801 - reads as a function
    """A shared buffer and its export, which is closed at the end."""

    def __init__(self, device):
        self.buffer = shared_buffer(device, 4096, "ours")
        self.exported = self.buffer.export()

    def __enter__(self):
        return self.buffer, self.exported

    def __exit__(self, *error):
        self.exported.close()
        self.exported.close()  # a second call does nothing


def test_an_export_that_was_taken_is_its_takers(pair):
    buffer = shared_buffer(pair[0], 64)
    with buffer.export() as exported:
        fd = exported.take()
    os.fstat(fd)  # still open
    os.close(fd)
    buffer.close()


def test_imports_are_not_exported_and_closed_buffers_neither(pair):
    buffer = shared_buffer(pair[0], 64, "ours")
    with buffer.export() as exported:
        other = import_buffer(pair[1], exported, "theirs")
    with pytest.raises(DeviceError, match="export the buffer it came from"):
        other.export()
    other.close()
    buffer.close()
    with pytest.raises(DeviceError, match="export of buffer 'ours': it is closed"):
        buffer.export()


def test_a_driver_without_the_extension_says_so_in_one_line(pair, monkeypatch):
    device = pair[0]
    kept = frozenset(e for e in device.physical.extensions if e != "VK_KHR_external_memory_fd")
    monkeypatch.setattr(device.physical, "extensions", kept)
    reason = cannot_share(device)
    assert "its driver lacks VK_KHR_external_memory_fd; copy through the host instead" in reason
    assert "\n" not in reason
    with pytest.raises(DeviceError) as caught:
        shared_buffer(device, 64)
    assert str(caught.value) == reason


def test_another_devices_export_is_refused():
    if len(DEVICES) < 2:
        pytest.skip("one device only: nothing to mix up")
    devices = [opened(name) for name in DEVICES[:2]]
    for device in devices:
        if reason := cannot_share(device):
            pytest.skip(reason)
    with shared(devices[0]) as (buffer, exported):
        with pytest.raises(DeviceError, match="it was exported by another device or driver"):
            import_buffer(devices[1], exported)
        buffer.close()


OTHER_PROCESS = """
import sys
import numpy as np
from kernelforge_runtime.vk import ExportedBuffer, import_buffer, open_device

exported = ExportedBuffer(**eval(sys.argv[2]))
with open_device(sys.argv[1]) as device:
    buffer = import_buffer(device, exported)
    buffer.take_over()
    buffer.upload(buffer.download(np.uint32) * 2)
    buffer.hand_over()
"""


def test_another_process_imports_what_it_is_handed():
    device = opened(DEVICES[0])
    if reason := cannot_share(device):
        pytest.skip(reason)
    with shared(device) as (buffer, exported):
        buffer.upload(WORDS)
        buffer.hand_over()
        told = repr(asdict(exported))
        subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, DEVICES[0], told],
            pass_fds=[exported.fd],
            check=True,
            timeout=60,
        )
        buffer.take_over()
        np.testing.assert_array_equal(buffer.download(np.uint32), WORDS * 2)
        buffer.close()
