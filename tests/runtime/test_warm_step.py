"""A step that ran before makes nothing, and records nothing: memory and plans are there."""

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


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "staged"])
def test_a_warm_step_allocates_and_records_nothing(path, llvmpipe, made, monkeypatch, mapped):
    if not mapped:  # as on a graphics card: the host sees only what it asks to see
        bind = Buffer._bind
        seen = {"tokens", "owners", "segments", "staging", "choices", "penalties", "chosen tokens"}
        monkeypatch.setattr(
            Buffer, "_bind", lambda self, m, doing: bind(self, m and self.name in seen, doing)
        )
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
