"""A step that ran before makes nothing, and records nothing: memory and plans are there."""

import gc
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.vk import Device
from kernelforge_runtime.vk.buffer import Buffer
from kernelforge_runtime.vk.commands import CommandBuffer
from tests.models.checkpoints import random_rwkv7

pytestmark = pytest.mark.vulkan


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", layers=1, vocab=96, seed=5)


@pytest.fixture
def made(monkeypatch):
    """What was allocated or recorded since the list was emptied."""
    found: list[str] = []

    def noted(kind, method):
        inner = getattr(kind, method)

        def outer(self, *args, **named):
            found.append(f"{kind.__name__}.{method}")
            return inner(self, *args, **named)

        monkeypatch.setattr(kind, method, outer)

    noted(Buffer, "__init__")
    noted(CommandBuffer, "__init__")
    noted(CommandBuffer, "begin")
    noted(Device, "pipeline")
    return found


def hide_device_memory(monkeypatch):
    """As on a graphics card: the host sees only what it asks to see."""
    bind, placement = Buffer._bind, Device.placement
    seen = {"step inputs", "staging"}
    monkeypatch.setattr(
        Buffer, "_bind", lambda self, m, doing: bind(self, m and self.name in seen, doing)
    )
    monkeypatch.setattr(
        Device, "placement", lambda self, visible: replace(placement(self, visible), mapped=visible)
    )


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "staged"])
def test_a_warm_step_allocates_and_records_nothing(path, llvmpipe, made, monkeypatch, mapped):
    if not mapped:
        hide_device_memory(monkeypatch)
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as model:
        pieces = [np.array([i], np.uint32) for i in range(4)]
        states = [model.new_state() for _ in pieces]
        first = model.advance(pieces, states, 4)
        assert made  # it sees what the first step makes
        greedy = model.new_state()
        token = 1
        for _ in range(2):  # states move between slots once
            token = model.greedy(token, greedy)
        model.release(greedy)
        model.advance(pieces, states, 4)
        made.clear()
        for _ in range(3):
            logits = model.advance(pieces, states, 4)
        assert made == []
        assert np.isfinite(logits).all() and logits.shape == first.shape


def test_decoding_one_sequence_and_its_prompt_record_nothing_the_second_time(path, llvmpipe, made):
    with kf.load_model(path, llvmpipe, weights="f32") as model:
        state = model.new_state()
        for _ in range(2):
            made.clear()
            model.forward(list(range(40)), state)
            model.forward([3], state)
            model.greedy(3, state)
        assert made == []


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
def test_two_hundred_steps_of_an_engine_make_nothing_and_take_no_more_memory(
    path, llvmpipe, made, on_device
):
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as model:
        engine = kf.Engine(model, on_device=on_device)
        for i in range(4):
            engine.submit([i], 300, kf.Sampling(seed=i, presence=0, frequency=0))
        for _ in range(20):  # by then everything is recorded
            engine.step()
        before, peaks = llvmpipe.live_objects, []
        made.clear()
        gc.collect()
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            for _ in range(4):
                tracemalloc.reset_peak()
                for _ in range(50):
                    assert len(engine.step()) == 4
                gc.collect()
                peaks.append(tracemalloc.get_traced_memory()[1] - start)
        finally:
            tracemalloc.stop()
        assert made == []
        assert llvmpipe.live_objects == before
        # Four lists of tokens have grown by 150 each, and a list that grows is there twice for a
        # moment; logits that were kept would be 4 * 96 * 4 * 150 bytes.
        assert peaks[-1] - peaks[0] < 4 * 150 * 32, peaks
        for request in [*engine.active]:
            engine.cancel(request)
