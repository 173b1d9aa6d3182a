"""Temporaries: those that live at the same time never share a byte, the others share memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernelforge_runtime as kf
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.errors import BundleError
from kernelforge_runtime.ops.builder import PlanBuilder, Temporary, TemporarySlice, assign_offsets
from kernelforge_runtime.plan import Plan
from kernelforge_runtime.plan.arena import ALIGNMENT


def tensor(columns, first, last):
    return Temporary((1, columns), first, last)


def alive_together(a, b):
    return a.first <= b.last and b.first <= a.last


lives = st.tuples(st.integers(1, 4000), st.integers(0, 30), st.integers(0, 12)).map(
    lambda t: tensor(t[0], t[1], t[1] + t[2])
)


@given(st.lists(lives, max_size=40))
def test_tensors_alive_at_the_same_time_never_overlap(tensors):
    total = assign_offsets(tensors)
    for i, a in enumerate(tensors):
        assert a.offset >= 0
        assert a.offset % ALIGNMENT == 0
        assert a.offset + a.nbytes <= total
        for b in tensors[:i]:
            if alive_together(a, b):
                assert a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset
    at_once = (sum(t.nbytes for t in tensors if t.first <= s <= t.last) for s in range(43))
    assert max(at_once, default=0) <= total <= sum(t.nbytes for t in tensors)


def test_tensors_that_never_meet_share_memory():
    chain = [tensor(64, i, i + 1) for i in range(20)]
    assert assign_offsets(chain) == 2 * 256


def test_no_tensors_need_no_memory():
    assert assign_offsets([]) == 0


@given(st.lists(st.integers(1, 70), min_size=1, max_size=4))
def test_a_tensor_takes_whole_bindings(shape):
    nbytes = Temporary(tuple(shape)).nbytes
    assert nbytes % ALIGNMENT == 0
    assert 0 <= nbytes - 4 * int(np.prod(shape)) < ALIGNMENT


@pytest.fixture
def builder(device):
    return PlanBuilder(kf.load_bundle(device))


@pytest.fixture
def segment(device):
    """One sequence with a token, in slot 0."""
    buffer = device.buffer(16)
    buffer.upload(np.array([0, 1, 0, 0], np.uint32))
    yield buffer
    buffer.close()


@pytest.fixture
def copy(builder, segment):
    """Adds a copy of `size` floats from `source` to `target` to the plan."""

    def call(source, target, size=64):
        operands = {"in_x": source, "segment": segment, "out_y": target}
        builder.call("copy", "f32", Problem(L=1, B=1, E=size), operands, {"stride": size})

    return call


@pytest.mark.vulkan
def test_a_temporary_lives_from_its_first_to_its_last_call(copy):
    given, a, b, c = (Temporary((1, 64)) for _ in range(4))
    for source, target in ((given, a), (a, b), (b, c), (a, c)):
        copy(source, target)
    assert [(t.first, t.last) for t in (given, a, b, c)] == [(0, 0), (0, 3), (1, 2), (2, 3)]


@pytest.mark.vulkan
def test_a_chain_of_calls_carries_values_through_shared_memory(device, builder, copy):
    values = np.arange(256, dtype=np.float32)
    source, target = device.buffer(1024), device.buffer(1024)
    source.upload(values)
    target.fill(0)
    chain = [Temporary((4, 64)) for _ in range(9)]
    copy(source, chain[0], 256)
    for before, after in pairwise(chain):
        copy(before, after, 256)
    copy(chain[-1], target, 256)
    dispatches, work = builder.finish(device)
    assert work.nbytes == 2 * 1024
    with Plan(device, dispatches) as plan:
        for _ in range(3):
            plan.run()
    np.testing.assert_array_equal(target.download(np.float32), values)
    for buffer in (source, target, work):
        buffer.close()


@pytest.mark.vulkan
def test_a_slice_keeps_the_whole_alive_and_binds_its_bytes(device, builder, copy):
    whole, other = Temporary((2, 64)), Temporary((1, 64))
    copy(TemporarySlice(whole, 256, 256), other)
    copy(other, TemporarySlice(whole, 0, 256))
    assert (whole.first, whole.last) == (0, 1)
    dispatches, work = builder.finish(device)
    first, second = dispatches
    assert first.buffers["in_x"].offset == whole.offset + 256
    assert second.buffers["out_y"].offset == whole.offset
    assert first.buffers["in_x"].nbytes == 256
    work.close()


@pytest.mark.vulkan
def test_work_memory_starts_as_zeros(device, builder, copy):
    copy(Temporary((1, 64)), Temporary((1, 64)))
    _, work = builder.finish(device)
    assert not work.download(np.uint32).any()
    work.close()


@pytest.mark.vulkan
def test_a_call_without_a_kernel_is_refused(builder):
    with pytest.raises(BundleError, match="no_such_family"):
        builder.call("no_such_family", "f32", Problem(E=4), {})
