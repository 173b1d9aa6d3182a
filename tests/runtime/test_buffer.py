"""Buffers: what goes in comes out, and nothing reaches past an end."""

from contextlib import closing

import numpy as np
import pytest

from kernelforge_runtime.errors import DeviceError, OutOfMemoryError
from kernelforge_runtime.vk.staging import STAGING_BYTES

pytestmark = pytest.mark.vulkan


@pytest.mark.parametrize("host_visible", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f2", "u1", "u4", "i8"])
def test_what_is_uploaded_is_downloaded(device, rng, dtype, host_visible):
    data = rng.integers(0, 100, (7, 9)).astype(dtype)
    with closing(device.buffer(data.nbytes, "data", host_visible)) as buffer:
        assert buffer.nbytes % 16 == 0
        assert data.nbytes <= buffer.nbytes < data.nbytes + 16
        buffer.upload(data)
        np.testing.assert_array_equal(buffer.download(dtype, (7, 9)), data)


def test_strided_and_empty_arrays_are_uploaded_as_their_elements(llvmpipe):
    data = np.arange(24, dtype=np.float32).reshape(4, 6)
    with closing(llvmpipe.buffer(96)) as buffer:
        buffer.fill(0)
        buffer.upload(data[:, ::2])
        buffer.upload(np.zeros(0, np.float32), 96)
        found = buffer.download(np.float32)
    np.testing.assert_array_equal(found[:12], data[:, ::2].reshape(-1))
    assert not found[12:].any()


def test_offsets_place_bytes_and_leave_the_rest_alone(device):
    with closing(device.buffer(64)) as buffer:
        buffer.fill(0x01010101)
        buffer.upload(np.array([7, 8], np.uint8), 33)
        found = buffer.download(np.uint8)
        assert found[33:35].tolist() == [7, 8]
        assert (np.delete(found, [33, 34]) == 1).all()
        assert buffer.download(np.uint8, (2,), 33).tolist() == [7, 8]
        assert buffer.download(np.uint32, offset=48).shape == (4,)


@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.upload(np.zeros(65, np.uint8)),
        lambda b: b.upload(np.zeros(16, np.uint8), 49),
        lambda b: b.upload(np.zeros(1, np.uint8), -1),
        lambda b: b.download(np.float32, (17,)),
        lambda b: b.download(np.float32, (1,), 61),
        lambda b: b.download(np.uint8, (1,), -1),
        lambda b: b.download(np.uint8, offset=65),
        lambda b: b.slice(0, 65),
        lambda b: b.slice(8, 16),
        lambda b: b.slice(-16, 16),
        lambda b: b.slice(16, 0),
        lambda b: b.slice(16, -16),
        lambda b: b.slice(16, 16).upload(np.zeros(17, np.uint8)),
        lambda b: b.slice(16, 16).download(np.uint8, (17,)),
    ],
)
def test_out_of_bounds_is_refused_in_one_line(llvmpipe, use):
    with closing(llvmpipe.buffer(64, "small")) as buffer:
        buffer.fill(0x5A5A5A5A)
        with pytest.raises(DeviceError) as caught:
            use(buffer)
        assert "\n" not in str(caught.value)
        assert (buffer.download(np.uint8) == 0x5A).all()


def test_a_slice_is_a_window_of_its_buffer(device):
    with closing(device.buffer(64)) as buffer:
        buffer.fill(0)
        piece = buffer.slice(16, 32)
        piece.upload(np.arange(8, dtype=np.float32))
        np.testing.assert_array_equal(piece.download(np.float32, (8,)), np.arange(8))
        assert not buffer.download(np.float32)[:4].any()
        assert not buffer.download(np.float32, offset=48).any()


def test_a_mapped_view_and_the_device_share_memory(device):
    with closing(device.buffer(16, "step", host_visible=True)) as buffer:
        view = buffer.view(np.uint32)
        view[:] = [1, 2, 3, 4]
        assert buffer.download(np.uint32).tolist() == [1, 2, 3, 4]
        buffer.fill(9)
        assert view.tolist() == [9, 9, 9, 9]
        del view


def test_a_buffer_that_the_host_cannot_see_has_no_view(llvmpipe, monkeypatch):
    with closing(llvmpipe.buffer(16, "hidden")) as buffer:
        monkeypatch.setattr(buffer, "mapped", None)
        with pytest.raises(DeviceError, match="'hidden' is not visible to the host; use download"):
            buffer.view(np.uint32)


def test_staging_copies_in_pieces_and_to_any_offset(device, rng):
    size = 2 * STAGING_BYTES + 4096
    data = rng.integers(0, 256, size, dtype=np.uint8)
    with closing(device.buffer(size + 64, "large")) as buffer:
        buffer.fill(0)
        device.staging.upload(buffer, data, 48)
        np.testing.assert_array_equal(buffer.mapped[48 : 48 + size], data)
        assert not buffer.mapped[:48].any()
        assert not buffer.mapped[48 + size :].any()
        part = device.staging.download(buffer, STAGING_BYTES + 7, 51)
        np.testing.assert_array_equal(part, data[3 : STAGING_BYTES + 10])


def test_staging_fills_every_word(device):
    with closing(device.buffer(4000)) as buffer:
        device.staging.fill(buffer, 0x7FC0DEAD)
        assert (buffer.download(np.uint32) == 0x7FC0DEAD).all()
        device.staging.fill(buffer, 0)
        assert not buffer.download(np.uint32).any()


def test_a_hidden_buffer_goes_through_staging(device, rng, monkeypatch):
    data = rng.standard_normal(1000).astype(np.float32)
    with closing(device.buffer(4000)) as buffer:
        with monkeypatch.context() as patch:
            patch.setattr(buffer, "mapped", None)  # as on a discrete GPU
            buffer.fill(0x3F800000)
            assert (buffer.download(np.float32) == 1).all()
            buffer.upload(data[:900], 16)
            np.testing.assert_array_equal(buffer.download(np.float32, 900, 16), data[:900])
        np.testing.assert_array_equal(buffer.download(np.float32, 900, 16), data[:900])


@pytest.mark.parametrize("nbytes", [0, -5])
def test_a_buffer_without_bytes_is_refused(llvmpipe, nbytes):
    with pytest.raises(DeviceError, match="at least one byte"):
        llvmpipe.buffer(nbytes)


@pytest.mark.parametrize("size", [1 << 40, 1 << 46])
def test_an_absurd_size_is_out_of_memory_in_one_line_and_leaves_nothing_behind(llvmpipe, size):
    before = llvmpipe.live_objects
    with pytest.raises(OutOfMemoryError, match=r"buffer 'weights' of \d+\.\d MB: .*llvmpipe") as e:
        llvmpipe.buffer(size, "weights")
    assert "\n" not in str(e.value)
    assert "smaller weight format" in str(e.value)
    assert llvmpipe.live_objects == before
    with closing(llvmpipe.buffer(16)) as buffer:
        buffer.fill(1)


@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.upload(np.zeros(4, np.uint8)),
        lambda b: b.download(np.uint8),
        lambda b: b.fill(0),
        lambda b: b.view(np.uint8),
    ],
)
def test_a_closed_buffer_is_refused(llvmpipe, use):
    buffer = llvmpipe.buffer(16)
    buffer.close()
    buffer.close()
    with pytest.raises(DeviceError):
        use(buffer)
