"""Plans: what does not fit is refused before it is recorded; what is recorded is right."""

import dataclasses
from contextlib import ExitStack

import numpy as np
import pytest

from kernelforge_runtime.abi.grid import CeilDiv, Grid
from kernelforge_runtime.abi.signature import Binding, PushConstant
from kernelforge_runtime.dtypes import F32, U32
from kernelforge_runtime.errors import DeviceError, PlanError
from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import CommandBuffer
from tests.runtime.kernels import ALPHA, N, X, Y, increment, kernel, plus_one, slow

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]


@pytest.fixture
def buffers(device):
    """Makes buffers of N floats, all zero."""
    with ExitStack() as stack:

        def make(count=64):
            buffer = device.buffer(4 * count)
            stack.callback(buffer.close)
            buffer.fill(0)
            return buffer

        yield make


@pytest.fixture
def barriers(monkeypatch):
    """Counts the barriers that are recorded."""
    counted = []
    record = CommandBuffer.barrier
    monkeypatch.setattr(
        CommandBuffer, "barrier", lambda self: (counted.append(self.name), record(self))
    )
    return counted


def test_a_dispatch_reads_its_constants_and_writes_its_output(device, buffers):
    module = kernel(
        "if (i < N) y[i] = alpha * x[i] + float(K);", (X, Y), (N, ALPHA, PushConstant("K"))
    )
    x, y = buffers(200), buffers(200)
    x.upload(np.arange(200, dtype=np.float32))
    dispatch = Dispatch(module, {"N": 199, "K": 7}, {"x": x, "y": y}, {"alpha": 0.5})
    with Plan(device, [dispatch]) as plan:
        plan.run()
    expected = np.arange(200) * 0.5 + 7
    expected[199] = 0
    np.testing.assert_array_equal(y.download(np.float32), expected)


REFUSALS = {
    "binding y has no buffer": lambda d, y: {"buffers": {"x": d.buffers["x"]}},
    "binding x needs 260 bytes": lambda d, y: {"dims": {"N": 65, "K": 2}},
    "needs dimension 'N'": lambda d, y: {"dims": {"M": 64, "K": 2}},
    "push constant alpha has no value": lambda d, y: {"constants": {}},
    "the buffer has 128": lambda d, y: {"buffers": {**d.buffers, "y": y.slice(128, 128)}},
    "compiled for": lambda d, y: {"dims": {"N": 64, "K": 3}},
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_dispatch_that_does_not_fit_its_kernel_is_refused(device, buffers, message):
    module = kernel("if (i < N) y[i] = alpha;", (X, Y), (N, ALPHA), fixed=(("K", 2),))
    x, y = buffers(), buffers()
    good = Dispatch(module, {"N": 64, "K": 2}, {"x": x, "y": y}, {"alpha": 1.0})
    Plan(device, [good]).close()
    before = device.live_objects
    bad = dataclasses.replace(good, **REFUSALS[message](good, y))
    with pytest.raises(PlanError, match=message) as caught:
        Plan(device, [good, bad])
    assert "\n" not in str(caught.value)
    assert device.live_objects == before


def test_a_dispatch_on_a_closed_buffer_is_refused_in_both_forms(device, buffers):
    for form in ("descriptor", "address"):
        x, y = device.buffer(256), buffers()
        x.close()
        with pytest.raises(PlanError, match="the buffer of x is closed"):
            Plan(device, [Dispatch(plus_one(form), {"N": 64}, {"x": x, "y": y})])


def test_more_workgroups_than_the_device_takes_are_refused(device, buffers):
    grid = Grid((CeilDiv("N"), CeilDiv("K")))
    module = kernel("y[0] = 1.0;", (Binding("y", F32, (1,), "write"),), (), grid=grid)
    many = device.info.max_workgroup_count[0] // 64 + 1
    with pytest.raises(PlanError, match=r"workgroups for .* allows \("):
        Plan(device, [Dispatch(module, {"N": 64, "K": many}, {"y": buffers()})])


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "7", None])
def test_a_constant_out_of_range_is_refused(device, buffers, value):
    module = kernel("y[i] = float(mode);", (Y,), (PushConstant("mode"),))
    with pytest.raises(PlanError, match="push constant mode"):
        Plan(device, [Dispatch(module, {"N": 64}, {"y": buffers()}, {"mode": value})])


def test_a_slice_that_the_device_cannot_bind_is_refused(device, buffers):
    alignment = device.info.min_storage_alignment
    if alignment <= 16:
        pytest.skip(f"{device.info.name} binds at every offset that a slice may have")
    x = buffers(256)
    with pytest.raises(DeviceError, match=f"aligned to {alignment}"):
        Plan(device, [Dispatch(plus_one(), {"N": 4}, {"x": x.slice(16, 16), "y": buffers()})])


def test_a_chain_of_dependent_dispatches_is_right_a_hundred_times(device, buffers):
    x, y, z = buffers(1000), buffers(1000), buffers(1000)
    dims = {"N": 1000}
    chain = [Dispatch(increment(), dims, {"y": x})]
    chain += [Dispatch(plus_one(), dims, {"x": x, "y": y}), Dispatch(increment(), dims, {"y": y})]
    chain += [
        Dispatch(plus_one(), dims, {"x": y, "y": z}),
        Dispatch(plus_one(), dims, {"x": z, "y": y}),
    ]
    with Plan(device, chain) as plan:
        for run in range(1, 101):
            plan.run()
            assert (x.download(np.float32) == run).all()
            assert (z.download(np.float32) == run + 3).all()
            assert (y.download(np.float32) == run + 4).all()


def test_barriers_stand_only_where_something_depends(device, buffers, barriers):
    a, b, c, d = (buffers() for _ in range(4))

    def call(x, y):
        return Dispatch(plus_one(), {"N": 64}, {"x": x, "y": y})

    def count(*dispatches):
        barriers.clear()
        Plan(device, dispatches).close()
        return len(barriers)

    assert count(call(a, b)) == 0
    assert count(call(a, b), call(c, d)) == 0  # nothing in common
    assert count(call(a, b), call(a, c)) == 0  # both read a
    assert count(call(a, b), call(b, c)) == 1  # read after write
    assert count(call(a, b), call(c, b)) == 1  # write after write
    assert count(call(a, b), call(c, a)) == 1  # write after read
    assert count(call(a, b), call(c, d), call(b, c), call(d, a)) == 1  # one serves both
    assert count(call(a, b), call(b, c), call(b, d)) == 1
    assert count(*[Dispatch(increment(), {"N": 64}, {"y": a})] * 5) == 4


def test_halves_of_one_buffer_do_not_depend_on_each_other(device, buffers, barriers):
    whole, x = buffers(128), buffers()
    halves = whole.slice(0, 256), whole.slice(256, 256)
    calls = [Dispatch(plus_one(), {"N": 64}, {"x": x, "y": half}) for half in halves]
    with Plan(device, calls) as plan:
        plan.run()
    assert barriers == []
    assert (whole.download(np.float32) == 1).all()
    Plan(device, [calls[0], Dispatch(increment(), {"N": 64}, {"y": whole.slice(0, 512)})]).close()
    assert len(barriers) == 1


def test_address_and_descriptor_forms_give_the_same(device, buffers, rng):
    x = buffers(512)
    x.upload(rng.standard_normal(512).astype(np.float32))
    found = []
    for form in ("descriptor", "address"):
        y = buffers(512)
        halves = [(x.slice(o, 1024), y.slice(o, 1024)) for o in (0, 1024)]
        calls = [Dispatch(plus_one(form), {"N": 256}, {"x": a, "y": b}) for a, b in halves]
        with Plan(device, calls) as plan:
            plan.run()
        found.append(y.download(np.float32))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], x.download(np.float32) + np.float32(1))


def test_timestamps_at_the_ends_are_positive_and_grow_with_the_work(device, buffers):
    y = buffers(4096)
    times = []
    for rounds in (1, 20_000):
        with Plan(
            device, [Dispatch(slow(), {"N": 4096}, {"y": y}, {"rounds": rounds})], "ends"
        ) as plan:
            plan.run()
            times.append(plan.elapsed_ns())
            assert plan.clock == ("timestamp" if device.info.timestamp_bits else "host")
    assert 0 <= times[0] < times[1]


def test_each_dispatch_has_a_time_and_they_add_up_to_no_more_than_the_whole(device, buffers):
    y = buffers(4096)
    dispatch = Dispatch(slow(), {"N": 4096}, {"y": y}, {"rounds": 1000})
    with Plan(device, [dispatch] * 4, "each") as plan:
        for _ in range(3):
            plan.run()
            times = plan.dispatch_ns()
            assert len(times) == 4
            assert all(t >= 0 for t in times)
            waits = plan.barrier_ns()
            assert np.isnan(waits).tolist() == [True, False, False, False]  # each writes y
            assert plan.barriers == 3
            assert all(w >= 0 for w in waits[1:])
            assert sum(times) + sum(waits[1:]) <= plan.elapsed_ns() * (1 + 1e-9)


def test_a_queue_without_timestamps_is_timed_by_the_host(device, buffers, monkeypatch):
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, timestamp_bits=0))
    dispatch = Dispatch(slow(), {"N": 64}, {"y": buffers()}, {"rounds": 100})
    with Plan(device, [dispatch], "each") as plan:
        plan.run()
        assert plan.clock == "host"
        assert plan.elapsed_ns() > 0
        assert plan.dispatch_ns() == []


def test_times_that_nobody_took_are_refused(device, buffers):
    dispatch = Dispatch(slow(), {"N": 64}, {"y": buffers()}, {"rounds": 1})
    with Plan(device, [dispatch], "each", "early") as plan:
        for ask in (plan.elapsed_ns, plan.dispatch_ns):
            with pytest.raises(PlanError, match=r"time of plan 'early' .* has not run yet"):
                ask()
    with Plan(device, [dispatch]) as plan:
        plan.run()
        with pytest.raises(PlanError, match="made without timestamps"):
            plan.elapsed_ns()


def test_an_empty_plan_runs(device):
    with Plan(device, [], "each") as plan:
        plan.run()
        assert plan.dispatch_ns() == []
        assert plan.elapsed_ns() >= 0


OWN = (Y, Binding("held", F32, (2, "N"), "scratch"), Binding("turns", U32, (1,), "zeroed"))
LAST_ADDS = """
    held[i] = 1.0;
    memoryBarrierBuffer();
    if (atomicAdd(turns[0], 1u) == N - 1u) {
        memoryBarrierBuffer();
        for (uint j = 0u; j < N; j++) y[j] = held[j];
        turns[0] = 0u;
    }
"""


def test_a_kernel_s_own_memory_is_the_plan_s_and_is_zero_where_it_must_be(
    device, buffers, barriers
):
    """Two sizes share it: were turns not zero again, the second would find no last one."""
    module = kernel(LAST_ADDS, OWN, workgroup=1)
    small, large = buffers(16), buffers(64)
    calls = [Dispatch(module, {"N": 16}, {"y": small}), Dispatch(module, {"N": 64}, {"y": large})]
    with Plan(device, calls) as plan:
        assert len(barriers) == 1  # though they have no buffer that they were given in common
        for _ in range(3):
            small.fill(0)
            large.fill(0)
            plan.run()
            assert (small.download(np.float32) == 1).all()
            assert (large.download(np.float32) == 1).all()


def test_a_plan_that_is_refused_leaves_none_of_its_own_memory(device, buffers):
    module = kernel(LAST_ADDS, OWN, workgroup=1)
    device.pipeline(module)
    before = device.live_objects
    with pytest.raises(PlanError, match="binding y has no buffer"):
        Plan(device, [Dispatch(module, {"N": 16}, {})])
    assert device.live_objects == before
