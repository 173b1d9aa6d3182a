"""Pipelines that no plan uses are closed at some time, those in use never."""

import threading

import numpy as np
import pytest

from kernelforge_runtime.plan import Dispatch, Plan
from kernelforge_runtime.vk import pipelines
from tests.runtime.kernels import plus_one

pytestmark = pytest.mark.vulkan


@pytest.fixture
def own(device, monkeypatch):
    """A cache of four idle pipelines on a shared device."""
    monkeypatch.setattr(pipelines, "MOST_IDLE", 4)
    found = pipelines.Pipelines(device, device.pipeline_cache)
    yield found
    for made in [*found._made.values()]:
        made.close()


def open_ones(own):
    """By room, which makes pipelines of one module different ones."""
    return [room for _, _, room in own._made]


def test_the_ones_used_latest_are_kept(own, device):
    before = device.live_objects.get("pipeline", 0)
    for room in range(1, 8):
        own.let_go([own.hold(plus_one(), room)])
    assert open_ones(own) == [4, 5, 6, 7]
    own.let_go([own.hold(plus_one(), 5)])  # is the latest one now
    own.let_go([own.hold(plus_one(), 8)])
    assert open_ones(own) == [6, 7, 5, 8]
    assert device.live_objects["pipeline"] == before + 4


def test_what_is_held_is_never_closed(own):
    held = [own.hold(plus_one(), room) for room in range(1, 10)]
    twice = own.hold(plus_one(), 1)
    assert twice is held[0]
    own.let_go(held[:6])
    assert held[0].handle is not None
    assert [h.handle is not None for h in held[1:]] == [False] + 7 * [True]
    own.let_go([twice, *held[6:]])
    assert len(open_ones(own)) == 4


def test_one_that_somebody_closed_is_made_anew(own):
    first = own.get(plus_one())
    first.close()
    second = own.hold(plus_one())
    assert second is not first and second.handle is not None
    own.let_go([second])


def test_threads_that_want_the_same_get_the_same(own, device):
    before, found = device.live_objects.get("pipeline", 0), []
    begin = threading.Barrier(8)

    def take():
        begin.wait()
        for _ in range(20):
            pipeline = own.hold(plus_one(), 3)
            found.append(pipeline.handle is not None)
            own.let_go([pipeline])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 160 * [True] and open_ones(own) == [3]
    assert device.live_objects["pipeline"] == before + 1


def test_a_plan_holds_what_it_uses_and_lets_it_go(own, device, monkeypatch):
    monkeypatch.setattr(pipelines, "MOST_IDLE", 0)
    monkeypatch.setattr(device, "pipelines", own)
    module, data = plus_one(), np.arange(64, dtype=np.float32)
    buffers = {b.name: device.buffer(256, b.name) for b in module.signature.bindings}
    try:
        buffers["x"].upload(data)
        with Plan(device, [Dispatch(module, {"N": 64}, buffers)]) as one:
            with Plan(device, [Dispatch(module, {"N": 64}, buffers)] * 2) as other:
                other.run()
            buffers["y"].fill(0)
            assert [*own._users.values()] == [1]
            one.run()  # the other one's end took nothing from it
            np.testing.assert_array_equal(buffers["y"].download(np.float32, 64), data + 1)
        assert not own._users and not own._made
    finally:
        for buffer in buffers.values():
            buffer.close()
