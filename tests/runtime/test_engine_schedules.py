"""Any order of arrivals and cancellations: everybody gets what they get alone, nothing leaks."""

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge_runtime as kf
from kernelforge_runtime.ops.vulkan_step import StepSize
from tests.models.checkpoints import random_rwkv7

SAMPLING = kf.Sampling(temperature=1.0, top_p=0.9, seed=3)
PROMPTS = [[5], [1, 2], list(range(9)), list(range(40)), [7] * 21]
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, len(PROMPTS) - 1), st.integers(0, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("fork"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 3), st.just(0)),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("m") / "m.safetensors"
    return random_rwkv7(target, layers=1, vocab=96, seed=5)


@pytest.fixture(scope="module")
def expected(path):
    """What each prompt goes on with, by NumPy, one token after the other."""
    model = kf.load_reference(path)
    engine = kf.Engine(model, slots=1)
    requests = [engine.submit(p, 6, SAMPLING) for p in PROMPTS]
    for _ in engine.run():
        pass
    return [r.tokens for r in requests]


def check_schedule(model, expected, actions, slots, chunk):
    engine = kf.Engine(model, slots=slots, chunk=chunk)
    requests = []
    for action, number, count in actions:
        if action == "submit":
            requests.append((number, engine.submit(PROMPTS[number], count, SAMPLING)))
        elif action == "step":
            for _ in range(number):
                engine.step()
        elif requests:
            prompt, request = requests[number % len(requests)]
            if action == "cancel":
                engine.cancel(request)
            elif request.reason is None:
                requests.append((prompt, engine.fork(request)))
    for _ in engine.run():
        pass
    for prompt, request in requests:
        whole = expected[prompt][: request.terms.max_tokens]
        if request.reason == "cancelled":
            assert request.tokens == whole[: len(request.tokens)]
        else:
            assert (request.reason, request.tokens) == ("length", whole)
        assert request.state is None
    assert not engine.is_busy


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(ACTIONS, max_size=14), st.integers(1, 4), st.sampled_from([4, 7, 64]))
def test_any_schedule_gives_everybody_what_they_get_alone(path, expected, actions, slots, chunk):
    check_schedule(kf.load_reference(path), expected, actions, slots, chunk)


@pytest.mark.vulkan
@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_on_a_device_give_what_numpy_gives(path, expected, llvmpipe, seed):
    rng = np.random.default_rng(seed)
    kinds = ("submit", "submit", "cancel", "fork", "step", "step")
    actions = [
        (kinds[rng.integers(6)], int(rng.integers(5)), int(rng.integers(7))) for _ in "x" * 30
    ]
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as model:
        check_schedule(model, expected, actions, 4, (4, 7, 64, 256)[seed])


@pytest.mark.vulkan
def test_ten_thousand_admissions_and_cancellations_leak_nothing(path, llvmpipe):
    """Cancelled while they wait, run, or have ended; a few run to their end."""
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as model:
        engine = kf.Engine(model, chunk=8)

        def churn(count):
            recent = []
            for i in range(count):
                keep = i % 16 == 0
                recent.append(engine.submit(PROMPTS[i % 3], 1 + i % 2, SAMPLING, keep_state=keep))
                if i % 24 == 0:
                    engine.step()
                if len(recent) > 6:
                    oldest = recent.pop(0)
                    if i % 32:
                        engine.cancel(oldest)
            for _ in engine.run():
                pass

        churn(24)
        for sequences in (1, 2, 4):  # what is recorded when it is first needed
            model._step(StepSize(sequences, sequences, single=True), "last")
            for tokens in (n for n in (2, 4, 8) if n >= sequences):
                model._step(StepSize(tokens, sequences), "last")
        before = llvmpipe.live_objects
        gc.collect()
        objects = len(gc.get_objects())
        churn(10_000)
        assert llvmpipe.live_objects == before
        gc.collect()
        assert len(gc.get_objects()) < objects + 200
        assert [model._resident.state_in(slot) for slot in range(4)] == [None] * 4
