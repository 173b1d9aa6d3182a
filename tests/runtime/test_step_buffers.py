"""What travels at each step: one buffer that the host writes, one copy where it must be near."""

from itertools import pairwise

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.ops.step_buffers import StepBuffers
from kernelforge_runtime.plan.arena import ALIGNMENT
from kernelforge_runtime.vk.commands import CommandBuffer
from tests.models.checkpoints import random_rwkv7
from tests.runtime.test_warm_step import hide_device_memory

pytestmark = pytest.mark.vulkan


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.safetensors", layers=1, vocab=96, seed=5)


def inputs_of(model):
    """The slices of the input buffer that the first recorded decoding step binds, by binding."""
    step = model._steps[next(key for key in model._steps if key[0].single)]
    bound = [(n, b) for d in step.plan.dispatches for n, b in d.buffers.items()]
    wanted = {"token", "owner", "segment", "choice", "penalty", "out_token"}
    return {name: piece for name, piece in bound if name in wanted}


def run(model):
    """Logits of a prompt, of decoding two at once, and what is chosen next."""
    first, second = model.new_state(), model.new_state()
    found = [model.forward(list(range(20)), first)[0]]
    found.append(model.forward_batch([[3], [5, 6, 7]], [first, second])[0])
    found.append(model.forward_batch([[8], [9]], [first, second])[0])
    found.append(np.array([model.greedy(4, first), model.greedy(4, second)]))
    return found


def test_everything_that_a_step_reads_anew_lies_in_one_buffer(path, llvmpipe):
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        model.greedy(1, model.new_state())
        pieces = inputs_of(model)
        assert {"token", "segment", "out_token"} <= pieces.keys()
        assert {piece.buffer.name for piece in pieces.values()} == {"step inputs"}
        assert len({id(piece.buffer) for piece in pieces.values()}) == 1


def test_a_device_whose_memory_the_host_does_not_see_copies_it_once(path, llvmpipe, monkeypatch):
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        expected = run(model)
    hide_device_memory(monkeypatch)
    copies = []
    copy = CommandBuffer.copy
    monkeypatch.setattr(
        CommandBuffer, "copy", lambda self, *given: copies.append(given) or copy(self, *given)
    )
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        found = run(model)
        copies.clear()
        step = model._record(next(key[0] for key in model._steps if key[0].single), "last")
        assert [(c[0].name, c[2].name) for c in copies] == [("step inputs", "step inputs, near")]
        near = {n: p for d in step.plan.dispatches for n, p in d.buffers.items() if n == "segment"}
        assert near["segment"].buffer.name == "step inputs, near"
        assert model._buffers.halves[0].chosen.buffer.name == "step inputs"
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_halves_do_not_overlap_and_each_chooses_into_the_other(llvmpipe):
    buffers = StepBuffers(llvmpipe, 3, 5)
    try:
        first, second = buffers.halves
        for half in (first, second):
            spans = sorted((p.offset, p.offset + p.nbytes) for p in half.slices[:5])
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
            assert all(p.offset % ALIGNMENT == 0 for p in half.slices)
        mine = {(p.offset, p.nbytes) for p in first.slices[:3]}
        assert mine.isdisjoint((p.offset, p.nbytes) for p in second.slices[:3])
        assert (first.chosen, second.chosen) == (second.token, first.token)
        assert (first.choice, first.penalty) == (second.choice, second.penalty)
        buffers.write(1, [[7, 8], [9]], [(2, 1, 40), (1, 0, 3)], 4, 4)
        assert buffers.chosen(0)[:4].tolist() == [7, 8, 9, 0]
        words = second.segment.download(np.uint32, (4, 4))
        assert words.tolist() == [[0, 2, 1, 40], [2, 1, 0, 3], [0] * 4, [0] * 4]
        assert second.owner.download(np.uint32, (4,)).tolist() == [0, 0, 1, 0]
        assert not first.segment.download(np.uint32, (256, 4)).any()
    finally:
        buffers.close()
    assert all(buffer.handle is None for buffer in buffers._made)
