"""Interrupts in the middle of a step, and other threads: every text is what it would have been."""

import threading

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine.request import Request
from kernelforge_runtime.errors import DeviceError
from kernelforge_runtime.models.device_choice import can_choose
from kernelforge_runtime.vk.commands import CommandBuffer
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7

PROMPTS = ["ab", "In the beginning God created", "x", "Moses"]
TOKENS = 7


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("m") / "bytes.safetensors"
    return random_rwkv7(target, layers=1, vocab=256, seed=3)


@pytest.fixture(scope="module")
def reference(path):
    return kf.load_reference(path)


@pytest.fixture(scope="module")
def model(path):
    with kf.load_model(path, opened(DEVICES[0]), weights="f32", slots=3) as loaded:
        yield loaded


def sampling(number):
    return kf.Sampling(temperature=1.1, presence=0.3, frequency=0.2, seed=number)


@pytest.fixture(scope="module")
def expected(reference):
    engine = kf.Engine(reference)
    found = [engine.submit(p, TOKENS, sampling(i)) for i, p in enumerate(PROMPTS)]
    for _ in engine.run():
        pass
    return [(request.tokens, request.text) for request in found]


def served(engine):
    """Every request to its end, whatever breaks a step off: (requests, text by events, breaks)."""
    asked = [engine.submit(p, TOKENS, sampling(i)) for i, p in enumerate(PROMPTS)]
    said, broken = dict.fromkeys(asked, ""), 0
    while engine.is_busy:
        try:
            for event in engine.step():
                said[event.request] += event.text
        except KeyboardInterrupt:
            broken += 1
    return asked, list(said.values()), broken


@pytest.mark.vulkan
@pytest.mark.parametrize("cached", [None, 1 << 20])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_interrupted_steps_change_no_text(model, expected, monkeypatch, every, on_device, cached):
    if on_device and not can_choose(model.kernels, 256):
        pytest.skip("the device's bundles have no kernel that chooses tokens")
    waits = []
    wait = CommandBuffer.wait

    def interrupted(commands, timeout_s):
        waits.append(commands._pending)
        if commands._pending and sum(waits) % every == 0 and sum(waits) < 40:
            raise KeyboardInterrupt
        wait(commands, timeout_s)

    engine = kf.Engine(model, chunk=8, on_device=on_device, prefix_cache=cached)
    monkeypatch.setattr(CommandBuffer, "wait", interrupted)
    asked, said, broken = served(engine)
    assert broken > 3
    assert [(r.tokens, r.text) for r in asked] == expected
    assert said == [text for _, text in expected]
    assert {r.reason for r in asked} == {"length"}


@pytest.mark.parametrize("times", [1, 2])
def test_a_chosen_token_is_told_of_after_an_interrupt_and_after_another_one_meanwhile(
    reference, expected, monkeypatch, times
):
    engine = kf.Engine(reference)
    broken, news = [], Request.news

    def interrupted(request):
        said = len(request.tokens)
        if request.id == 2 and said in (1, 4, TOKENS) and broken.count(said) < times:
            broken.append(said)
            raise KeyboardInterrupt
        return news(request)

    monkeypatch.setattr(Request, "news", interrupted)
    asked, _, count = served(engine)
    assert broken == [said for said in (1, 4, TOKENS) for _ in range(times)]
    assert count == 3
    assert [(r.tokens, r.text) for r in asked] == expected


@pytest.mark.vulkan
def test_a_plan_and_a_copy_run_again_after_waiting_for_them_was_broken_off(model, monkeypatch):
    wanted, _ = model.forward([1, 2, 3])
    wait, broken = CommandBuffer.wait, []

    def interrupted(commands, timeout_s):
        if not broken:
            broken.append(commands.name)
            raise KeyboardInterrupt
        wait(commands, timeout_s)

    monkeypatch.setattr(CommandBuffer, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.forward([1, 2, 3])
    try:
        np.testing.assert_array_equal(model.forward([1, 2, 3])[0], wanted)
    except DeviceError as error:
        pytest.fail(f"the plan cannot be submitted again: {error}")


def test_other_threads_submit_fork_and_cancel_while_one_steps(reference, expected):
    engine = kf.Engine(reference, slots=3, chunk=16)
    kept, cancelled, failures = [], [], []
    left = threading.Semaphore(0)

    def ask(seed):
        rng = np.random.default_rng(seed)
        try:
            for _ in range(4):
                number = int(rng.integers(len(PROMPTS)))
                request = engine.submit(PROMPTS[number], TOKENS, sampling(number))
                other = engine.submit(PROMPTS[number], TOKENS, sampling(number))
                kept.append((number, request))
                if request.reason is None and len(request.tokens) < TOKENS - 3:
                    kept.append((number, engine.fork(request)))
                engine.cancel(other)
                cancelled.append((number, other, list(other.tokens)))
        except Exception as error:
            failures.append(error)
        finally:
            left.release()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    ended = []
    while engine.is_busy or any(thread.is_alive() for thread in threads):
        ended += [event.request for event in engine.step() if event.reason is not None]
    ended += [event.request for event in engine.step() if event.reason is not None]
    for thread in threads:
        thread.join()
    assert not failures
    numbers = [request.id for _, request in kept] + [request.id for _, request, _ in cancelled]
    assert len({*numbers}) == len(numbers) >= 24
    assert sorted(request.id for request in ended) == sorted(numbers)
    for number, request in kept:
        assert (request.tokens, request.text) == expected[number]
    for number, request, tokens in cancelled:
        assert request.reason in ("cancelled", "length")
        assert request.tokens == tokens == expected[number][0][: len(tokens)]
