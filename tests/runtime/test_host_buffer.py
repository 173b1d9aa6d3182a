"""Large buffers of devices that are processors: in the host's own memory where the driver can."""

from contextlib import closing

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.errors import OutOfMemoryError
from kernelforge_runtime.vk.device import VALIDATION_MESSAGES
from kernelforge_runtime.vk.host_buffer import LEAST_BYTES, HostBuffer, takes_host_memory
from kernelforge_runtime.vk.physical import EXTERNAL_MEMORY_HOST
from kernelforge_runtime.vk.staging import Staging

pytestmark = pytest.mark.vulkan


def test_a_large_buffer_is_in_host_memory_and_counts_what_is_asked_for(llvmpipe):
    if not takes_host_memory(llvmpipe):
        pytest.skip(f"this llvmpipe lacks {EXTERNAL_MEMORY_HOST}")
    used = llvmpipe.memory.used
    with closing(llvmpipe.buffer(LEAST_BYTES + 48, "large")) as large:
        assert isinstance(large, HostBuffer)
        assert large.nbytes == LEAST_BYTES + 48
        assert llvmpipe.memory.used == used + LEAST_BYTES + 48
        assert not large.mapped.any()  # the system's pages are clear
    assert large.mapped is None
    assert llvmpipe.memory.used == used
    with closing(llvmpipe.buffer(LEAST_BYTES - 16, "small")) as small:
        assert not isinstance(small, HostBuffer)


def test_the_device_writes_where_the_host_reads(llvmpipe, rng):
    data = rng.integers(0, 1 << 32, LEAST_BYTES // 4, np.uint32)
    with closing(llvmpipe.buffer(data.nbytes, "large")) as large:
        staging = Staging(llvmpipe)  # copies by commands of the device, though the host could
        try:
            staging.upload(large, data.view(np.uint8), 0)
            np.testing.assert_array_equal(large.download(np.uint32), data)
            large.upload(data[::-1])
            found = staging.download(large, data.nbytes, 0).view(np.uint32)
        finally:
            staging.close()
        np.testing.assert_array_equal(found, data[::-1])


def test_a_driver_without_the_extension_gives_memory_of_its_own(llvmpipe, monkeypatch):
    monkeypatch.setattr(
        llvmpipe.physical, "extensions", llvmpipe.physical.extensions - {EXTERNAL_MEMORY_HOST}
    )
    assert not takes_host_memory(llvmpipe)
    monkeypatch.setattr(llvmpipe, "_takes_host_memory", takes_host_memory(llvmpipe))
    with closing(llvmpipe.buffer(LEAST_BYTES)) as buffer:
        assert not isinstance(buffer, HostBuffer)
        buffer.fill(7)
        assert (buffer.download(np.uint32) == 7).all()


def test_more_than_the_host_has_is_out_of_memory_and_leaves_nothing(llvmpipe):
    before = llvmpipe.live_objects, llvmpipe.memory.used
    for nbytes in (1 << 46, 1 << 60):
        with pytest.raises(OutOfMemoryError, match=r"use a smaller weight format"):
            llvmpipe.buffer(nbytes, "huge")
    assert (llvmpipe.live_objects, llvmpipe.memory.used) == before


def test_the_validation_layer_has_nothing_to_say():
    said = len(VALIDATION_MESSAGES)
    with (
        kf.open_device("llvmpipe", validation=True) as device,
        closing(device.buffer(LEAST_BYTES + 48, "large")) as buffer,
    ):
        buffer.fill(3)
    assert VALIDATION_MESSAGES[said:] == []
