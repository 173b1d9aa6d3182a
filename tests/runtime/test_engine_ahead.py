"""Steps that are submitted before the host has read the last one's tokens: texts as without it."""

from dataclasses import replace

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.ops.step_buffers import StepBuffers
from kernelforge_runtime.text import StreamDecoder
from kernelforge_runtime.vk.commands import CommandBuffer
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rwkv7_rosa, random_rwkv7a
from tests.runtime.test_warm_step import hide_device_memory

pytestmark = pytest.mark.vulkan

GREEDY = kf.Sampling(temperature=0)
SAMPLINGS = [GREEDY, kf.Sampling(seed=7), kf.Sampling(temperature=1.3, top_k=9, seed=8)]
PROMPTS = [[5], [1, 2], list(range(9)), list(range(40)), [7] * 21]
ASKED = [(p, SAMPLINGS[i % 3], (6, 9, 4, 7, 5)[i]) for i, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return random_rwkv7(folder / "m.safetensors", layers=1, vocab=256, seed=5)


@pytest.fixture(scope="module")
def model(path):
    with kf.load_model(path, opened(DEVICES[0]), weights="f32", slots=4) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def oracle(path):
    """What each prompt goes on with, by NumPy, alone."""
    reference = kf.load_reference(path)
    engine = kf.Engine(reference, slots=1)
    asked = [engine.submit(prompt, 12, sampling) for prompt, sampling, _ in ASKED]
    for _ in engine.run():
        pass
    return reference, [request.tokens for request in asked]


def finish(engine):
    for _ in engine.run():
        pass


@pytest.fixture
def seen(monkeypatch):
    """What happened, in order, with the number of submits that were not waited for."""
    found, running = [], set()

    def noted(kind, method, name):
        inner = getattr(kind, method)

        def outer(self, *given, **named):
            if name == "submit":
                found.append((name, len(running)))
                running.add(self)
            elif name == "wait":
                running.discard(self)
            else:
                found.append((name, len(running)))
            return inner(self, *given, **named)

        monkeypatch.setattr(kind, method, outer)

    noted(CommandBuffer, "submit", "submit")
    noted(CommandBuffer, "wait", "wait")
    noted(StreamDecoder, "push", "text")
    noted(StepBuffers, "write", "inputs")
    return found


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
def test_texts_are_made_while_the_next_step_runs(model, seen, on_device):
    engine = kf.Engine(model, on_device=on_device)
    request = engine.submit([1, 2, 3], 12, kf.Sampling(seed=1))
    while request.reason is None:
        engine.step()
        assert len(request.tokens) == engine.steps
    texts = [running for name, running in seen if name == "text"]
    assert len(texts) == 12
    assert min(texts[1:-1]) >= 1, "a text was made while the device did nothing"
    inputs = [running for name, running in seen if name == "inputs"]
    if on_device:  # the inputs of the next step, and it itself, before the tokens are known
        assert max(inputs) == 2
        assert [running for name, running in seen if name == "submit"].count(2) >= 9


def test_a_prompt_s_next_chunk_is_packed_and_submitted_while_one_runs(model, seen):
    engine = kf.Engine(model, slots=1, chunk=4)
    engine.submit(list(range(40)), 1, GREEDY)
    finish(engine)
    assert engine.steps == 10
    assert [running for name, running in seen if name == "inputs"][2:9] == [1] * 7


def schedule(model, oracle, on_device, seed, chunk):
    """Random arrivals, cancellations, forks and looks; what everybody gets is the oracle's."""
    reference, expected = oracle
    rng = np.random.default_rng(seed)
    engine, requests = kf.Engine(model, chunk=chunk, on_device=on_device), []
    for _ in range(40):
        action, number = rng.integers(8), int(rng.integers(30))
        which, request = requests[number % len(requests)] if requests else (0, None)
        if action < 3:
            prompt, sampling, tokens = ASKED[number % 5]
            requests.append((number % 5, engine.submit(prompt, tokens, sampling)))
        elif action < 6:
            engine.step()
        elif request is None or request.reason is not None:
            continue
        elif number % 3 == 0:
            engine.cancel(request)
        elif number % 3 == 1:
            requests.append((which, engine.fork(request)))
        else:
            state, tokens = engine.state_of(request), [*ASKED[which][0], *request.tokens]
            assert state.position == len(tokens)
            _, wanted = reference.forward(tokens)
            np.testing.assert_allclose(
                state.arrays["wkv"], wanted.arrays["wkv"], atol=1e-3, rtol=1e-3
            )
    finish(engine)
    for which, request in requests:
        whole = expected[which][: request.terms.max_tokens]
        if request.reason == "cancelled":
            assert request.tokens == whole[: len(request.tokens)]
        else:
            assert (request.reason, request.tokens) == ("length", whole)
    assert [model._resident.state_in(slot) for slot in range(4)] == [None] * 4


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_give_everybody_what_they_get_alone(model, oracle, seed):
    schedule(model, oracle, True, seed, (4, 7, 64, 256)[seed])
    schedule(model, oracle, False, seed + 10, (256, 64, 7, 4)[seed])


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
def test_a_stop_that_is_found_late_discards_the_step_and_disturbs_nobody(model, oracle, on_device):
    expected = oracle[1]
    engine = kf.Engine(model, on_device=on_device)
    text = bytes(expected[1]).decode("utf-8", "replace")
    by_text = engine.submit(*ASKED[1][:1], 12, ASKED[1][1], stop=[text[3:5]])
    by_token = engine.submit(ASKED[2][0], 12, ASKED[2][1], stop_tokens=[expected[2][4]])
    other = engine.submit(ASKED[3][0], 12, ASKED[3][1])
    steps = 0
    while other.reason is None:
        engine.step()
        steps += 1
        if by_text.reason == "stop" and steps % 2:
            engine.submit([3, 4], 1, GREEDY)  # into the slot that was given away
    finish(engine)
    assert (by_text.reason, by_text.text) == ("stop", text[: text.index(text[3:5])])
    first = expected[2].index(expected[2][4])
    assert (by_token.reason, by_token.tokens) == ("stop", expected[2][:first])
    assert other.tokens == expected[3]


def test_a_state_that_is_to_be_kept_is_whole_whenever_its_request_ends(model, oracle):
    reference, expected = oracle
    engine = kf.Engine(model, on_device=True)
    stop = expected[1][5]
    kept = engine.submit(ASKED[1][0], 12, ASKED[1][1], stop_tokens=[stop], keep_state=True)
    engine.submit(ASKED[0][0], 12, GREEDY)
    finish(engine)
    tokens = [*ASKED[1][0], *kept.tokens]
    assert kept.tokens == expected[1][: expected[1].index(stop)]
    assert kept.state.position == len(tokens)
    _, wanted = reference.forward(tokens)
    np.testing.assert_allclose(kept.state.arrays["wkv"], wanted.arrays["wkv"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
@pytest.mark.parametrize("stop_tokens", [(), (255,)], ids=["any", "one may end it"])
def test_who_keeps_a_state_runs_ahead_too(model, seen, on_device, stop_tokens):
    engine = kf.Engine(model, on_device=on_device)
    how = {"stop_tokens": stop_tokens, "keep_state": True}
    request = engine.submit([1, 2, 3], 12, kf.Sampling(seed=1), **how)
    finish(engine)
    texts = [running for name, running in seen if name == "text"]
    assert min(texts[1:-1]) >= 1, "a text was made while the device did nothing"
    submits = [running for name, running in seen if name == "submit"]
    assert (submits.count(2) >= 9) == (on_device and not stop_tokens)
    assert request.state.position + len(request.pending) == 3 + len(request.tokens)


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
@pytest.mark.parametrize("ended", ["stop", "cancelled"])
def test_a_kept_state_that_was_ahead_is_gone_on_from(model, oracle, on_device, ended):
    reference, expected = oracle
    engine = kf.Engine(model, on_device=on_device)
    text = bytes(expected[1]).decode("utf-8", "replace")
    stop = [text[5]] if ended == "stop" else []
    kept = engine.submit(ASKED[1][0], 12, ASKED[1][1], stop=stop, keep_state=True)
    while kept.reason is None and not (ended == "cancelled" and len(kept.tokens) == 5):
        engine.step()
    engine.cancel(kept)
    assert kept.reason == ended
    state, tokens = engine.state_of(kept), [*ASKED[1][0], *kept.tokens]
    assert state.position == len(tokens)
    _, wanted = reference.forward(tokens)
    np.testing.assert_allclose(state.arrays["wkv"], wanted.arrays["wkv"], atol=1e-3, rtol=1e-3)
    if ended == "cancelled":
        engine.submit([9, 9], 3, GREEDY)  # into its slot
        engine.step()
        further = engine.fork(kept)
        finish(engine)
        assert further.tokens == expected[1]


@pytest.mark.parametrize("on_device", [True, False], ids=["by the device", "by the host"])
def test_whoever_else_uses_the_model_meanwhile_changes_nothing(model, oracle, on_device):
    reference, expected = oracle
    engines = [kf.Engine(model, on_device=on_device) for _ in range(2)]
    requests = [(e, i, e.submit(ASKED[i][0], 12, ASKED[i][1])) for e in engines for i in range(3)]
    own = model.new_state()
    while any(engine.is_busy for engine in engines):
        for engine in engines:
            engine.step()
        token = own.position % 7
        logits, own = model.forward([token], own)
    wanted, _ = reference.forward([n % 7 for n in range(own.position)])
    np.testing.assert_allclose(logits, wanted, atol=1e-3, rtol=1e-3)
    assert [r.tokens for _, _, r in requests] == expected[:3] * 2


def test_a_request_s_state_and_what_is_pending_agree_between_steps(model, oracle):
    reference, _ = oracle
    engine = kf.Engine(model, on_device=True)
    request = engine.submit([1, 2, 3], 10, GREEDY)
    for _ in range(4):
        engine.step()
    tokens = [1, 2, 3, *request.tokens]
    assert request.state.position + len(request.pending) == len(tokens)
    copy = request.state.clone()
    _, wanted = reference.forward(tokens[: copy.position])
    np.testing.assert_allclose(copy.arrays["wkv"], wanted.arrays["wkv"], atol=1e-3, rtol=1e-3)
    other = engine.fork(request, sampling=kf.Sampling(temperature=1.5, top_p=1.0, seed=5))
    finish(engine)
    assert other.tokens[:4] == request.tokens[:4] and other.tokens != request.tokens


@pytest.mark.parametrize("write", [random_rwkv7_rosa, random_rwkv7a])
def test_models_with_histories_and_tables_on_the_host_say_the_same(write, tmp_path, llvmpipe):
    file = write(tmp_path / "m.safetensors")
    reference = kf.load_reference(file, weights="f32")
    texts = []
    with kf.load_model(file, llvmpipe, weights="f32", slots=2) as loaded:
        for model, on_device in ((reference, None), (loaded, True), (loaded, False)):
            engine = kf.Engine(model, slots=2, on_device=on_device)
            asked = [engine.submit(p, 8, GREEDY) for p in ([1, 2, 3, 4, 5], [6])]
            finish(engine)
            texts.append([r.tokens for r in asked])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("sampling", [GREEDY, kf.Sampling(seed=3)], ids=["largest", "drawn"])
def test_one_text_is_made_while_the_device_runs_and_a_state_is_never_ahead(model, seen, sampling):
    own = model.new_state()
    found = [
        [p.token for p in kf.generate(model, [1, 2], 9, sampling, state=s)] for s in (None, own)
    ]
    assert found[0] == found[1]
    assert own.position == 2 + 8
    running = [running for name, running in seen if name == "text"]
    assert running == [*[1] * 8, 0, *[0] * 9]
    started = kf.generate(model, [1, 2], 9, sampling)
    assert next(started).token == found[0][0]
    model.forward([5])  # somebody else's, while that one's step runs
    assert [piece.token for piece in started] == found[0][1:]


def test_a_device_whose_memory_the_host_does_not_see_says_the_same(
    path, oracle, llvmpipe, monkeypatch
):
    hide_device_memory(monkeypatch)
    with kf.load_model(path, llvmpipe, weights="f32", slots=4) as hidden:
        assert hidden._buffers.halves[0].brought
        schedule(hidden, oracle, True, 5, 16)
        assert any(len(step.halves) == 2 for step in hidden._steps.values())


def test_steps_run_ahead_where_a_watchdog_bounds_their_submits(path, oracle, llvmpipe, monkeypatch):
    monkeypatch.setattr(llvmpipe, "info", replace(llvmpipe.info, device_type="discrete"))
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as watched:
        engine = kf.Engine(watched)
        assert engine.on_device
        request = engine.submit(ASKED[1][0], 12, ASKED[1][1])
        for _ in range(8):  # the first runs of each half were in small parts, and waited for
            engine.step()
        plans = [p.run for step in watched._steps.values() for p in step.halves if step.halves[1:]]
        assert len(plans) == 2
        assert all(plan.is_measured and plan.submits == 1 for plan in plans)
        assert not len(request.pending)
        finish(engine)
        assert request.tokens == oracle[1][1]
