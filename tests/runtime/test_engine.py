"""The engine: many requests at once get what each would get alone, and end when they should."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine.packing import pack
from kernelforge_runtime.errors import KernelForgeError, RequestError
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import DEMO, random_rwkv7

GREEDY = kf.Sampling(temperature=0)
PROMPTS = [
    "And it came to pass" * (n % 3 + 1) + " in the days of the king of the south"[: 3 * n]
    for n in range(15)
] + ["In the beginning God created the heaven and the earth. " * 7]
"""Sixteen, of 19 to 385 bytes."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "bytes.safetensors", vocab=256, seed=3)


@pytest.fixture(
    scope="module",
    params=["numpy", pytest.param(DEVICES[0], marks=pytest.mark.vulkan)],
)
def model(request, path):
    """Four slots; by NumPy, and on a device."""
    if request.param == "numpy":
        yield kf.load_reference(path)
        return
    with kf.load_model(path, opened(request.param), weights="f32", slots=4) as loaded:
        yield loaded


def alone(model, prompt, count, sampling=GREEDY, **more):
    """What an engine gives a request that has it to itself."""
    engine = kf.Engine(model)
    request = engine.submit(prompt, count, sampling, **more)
    for _ in engine.run():
        pass
    return request


def finished(engine):
    """Every event, by request."""
    events = {}
    for event in engine.run():
        events.setdefault(event.request, []).append(event)
    return events


@pytest.mark.vulkan
@pytest.mark.parametrize("device_name", DEVICES)
def test_sixteen_prompts_together_get_the_greedy_text_that_each_gets_alone(device_name):
    device = opened(device_name)
    with kf.load_model(DEMO, device, slots=16) as model:
        engine = kf.Engine(model)
        requests = [engine.submit(prompt, 12, GREEDY) for prompt in PROMPTS]
        finished(engine)
        # Alone each takes as long as all together: the poorer device does a few, the longest too.
        some = slice(None) if device_name == DEVICES[0] else slice(None, None, 5)
        for prompt, request in list(zip(PROMPTS, requests, strict=True))[some]:
            pieces = kf.generate(model, prompt, 12, GREEDY)
            assert request.text == "".join(p.text for p in pieces), prompt
            assert request.reason == "length"


@pytest.mark.vulkan
def test_an_empty_slot_is_untouched_bit_for_bit(path, llvmpipe):
    with kf.load_model(path, llvmpipe, weights="f32", slots=8) as model:
        kept = [model.new_state() for _ in range(3)]
        for i, state in enumerate(kept):  # three that stay resident while others run
            model.forward([i, i + 1], state)
        model.forward_batch([[5]] * 3, kept)
        before = [{n: a.copy() for n, a in state.arrays.items()} for state in kept]
        memory = raw(model)
        engine = kf.Engine(model, slots=4, chunk=16)
        for prompt in PROMPTS[:6]:
            engine.submit(prompt, 5, GREEDY)
        finished(engine)
        for old, state in zip(before, kept, strict=True):
            assert state._residence is not None, "it was moved out: the test shows nothing"
            assert all(np.array_equal(old[n], a) for n, a in state.arrays.items())
        after = raw(model)
        used = {n: differing(memory[n], after[n]) for n in memory}
        assert all(used.values()), "nothing ran"
        # Eight slots: three are kept, four were used; the eighth was never anybody's.
        assert all(len(slots) <= 4 for slots in used.values())


def raw(model):
    """Every slot's values as the device has them."""
    resident = model._resident
    return {
        name: np.stack([kept.read(slot) for slot in range(resident.slots)])
        for name, kept in resident._kept.items()
    }


def differing(before, after):
    return [i for i in range(len(before)) if before[i].tobytes() != after[i].tobytes()]


def test_requests_arrive_at_any_step_and_get_what_they_get_alone(model):
    engine = kf.Engine(model, slots=3, chunk=8)
    requests, prompts = [], [p[:n] for p, n in zip(PROMPTS, (3, 40, 1, 9, 17, 2, 25), strict=False)]
    for prompt in prompts:
        requests.append(engine.submit(prompt, 6, GREEDY))
        engine.step()
    finished(engine)
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.tokens == alone(model, prompt, 6).tokens


def test_a_seeded_request_says_the_same_whoever_else_is_served(model):
    sampling = kf.Sampling(temperature=1.2, top_p=0.9, presence=0.3, frequency=0.3, seed=11)
    expected = alone(model, "In the", 15, sampling).tokens
    engine = kf.Engine(model, slots=4, chunk=16)
    others = [engine.submit(p, 10, kf.Sampling(seed=i)) for i, p in enumerate(PROMPTS[:5])]
    request = engine.submit("In the", 15, sampling)
    finished(engine)
    assert request.tokens == expected
    assert all(len(other.tokens) == 10 for other in others)
    assert alone(model, "In the", 15, kf.Sampling(temperature=1.2, seed=12)).tokens != expected


def test_who_decodes_gets_a_token_in_every_step_while_a_long_prompt_is_read(model):
    engine = kf.Engine(model, slots=2, chunk=4)
    first = engine.submit("ab", 40, GREEDY)
    engine.step()
    engine.submit("x" * 60, 1, GREEDY)
    for _ in range(20):  # three prompt tokens a step: twenty steps
        told = [event.request for event in engine.step()]
        assert first in told
    assert engine.active == [first]


def test_requests_get_slots_in_the_order_in_which_they_came(model):
    engine = kf.Engine(model, slots=2)
    requests = [engine.submit("ab", n, GREEDY) for n in (5, 2, 2, 2)]
    ended = [event.request for event in engine.run() if event.reason is not None]
    assert ended == [requests[1], requests[2], requests[0], requests[3]]
    assert not engine.is_busy


@pytest.mark.parametrize("chunk", [4, 5, 32, 256])
def test_a_step_has_no_more_tokens_than_the_chunk_and_nobody_is_left_out(chunk):
    rng = np.random.default_rng(chunk)
    for _ in range(200):
        left = rng.integers(1, 300, rng.integers(1, 5)).tolist()
        counts = pack(left, chunk)
        assert all(1 <= c <= n for c, n in zip(counts, left, strict=True))
        assert sum(counts) <= max(chunk, len(left))
        assert sum(counts) == min(sum(left), chunk)


def test_stop_strings_and_tokens_end_the_text_before_them(model):
    whole = alone(model, "In the", 30)
    raw_text = bytes(whole.tokens)
    engine = kf.Engine(model)
    stop = next(chr(b) for b in raw_text[5:] if b < 128 and chr(b) not in whole.text[:3])
    by_text = engine.submit("In the", 30, GREEDY, stop=[stop])
    token = whole.tokens[7]
    by_token = engine.submit("In the", 30, GREEDY, stop_tokens=[token])
    events = finished(engine)
    assert by_text.reason == by_token.reason == "stop"
    assert by_text.text == whole.text.partition(stop)[0]
    assert by_token.tokens == whole.tokens[: whole.tokens.index(token)]
    assert events[by_token][-1].token is None
    for request in (by_text, by_token):
        assert "".join(e.text for e in events[request]) == request.text
        assert [e.reason for e in events[request][:-1]] == [None] * (len(events[request]) - 1)


def test_no_tokens_at_all_only_runs_the_prompt(model):
    request = alone(model, "abc", 0, keep_state=True)
    assert (request.reason, request.tokens, request.text) == ("length", [], "")
    _, expected = model.forward(list(b"abc"))
    assert request.state.position == 3
    for name, values in expected.arrays.items():
        np.testing.assert_allclose(request.state.arrays[name], values, atol=1e-4)


def test_logits_come_with_the_events_of_who_asks_for_them(model):
    engine = kf.Engine(model)
    asking, other = engine.submit("abc", 2, GREEDY, logits=True), engine.submit("abc", 2, GREEDY)
    events = finished(engine)
    for event in events[asking]:
        assert int(np.argmax(event.logits)) == event.token
    assert all(event.logits is None for event in events[other])


def test_a_request_can_be_cancelled_while_it_waits_reads_or_speaks(model):
    engine = kf.Engine(model, slots=2, chunk=4)
    speaks, reads, waits = (engine.submit(p, 50, GREEDY) for p in ("ab", "x" * 50, "cd"))
    last = engine.submit("ab", 3, GREEDY)
    engine.step()
    engine.step()
    assert speaks.tokens and not reads.tokens and waits in engine.waiting
    assert all(engine.cancel(r) for r in (speaks, reads, waits))
    assert not engine.cancel(speaks)
    events = finished(engine)
    assert [events[r][-1].reason for r in (speaks, reads, waits)] == ["cancelled"] * 3
    assert last.tokens == alone(model, "ab", 3).tokens
    assert speaks.state is None


def test_a_kept_state_goes_on_where_the_request_ended(model, tmp_path):
    whole = alone(model, "In the beginning", 12).tokens
    engine = kf.Engine(model)
    first = engine.submit("In the beginning", 5, GREEDY, keep_state=True)
    finished(engine)
    second = engine.submit(first.pending.tolist(), 7, GREEDY, state=first.state)
    finished(engine)
    assert first.tokens + second.tokens == whole
    engine.save(first, tmp_path / "s.safetensors")
    state = engine.load(tmp_path / "s.safetensors")
    assert state.position == len("In the beginning") + 5
    logits, _ = model.forward(list(b"Go"), state)
    expected, _ = model.forward(list(b"In the beginning") + first.tokens + list(b"Go"))
    np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_many_requests_start_from_one_state_which_stays_as_it_is(model):
    _, state = model.forward(list(b"In the "))
    before = state.clone()
    engine = kf.Engine(model)
    found = [engine.submit("be", 5, GREEDY, state=state) for _ in range(5)]
    finished(engine)
    assert {tuple(r.tokens) for r in found} == {tuple(alone(model, "In the be", 5).tokens)}
    assert all(np.array_equal(before.arrays[n], a) for n, a in state.arrays.items())


def test_a_fork_says_the_same_with_its_seed_and_something_else_with_another(model):
    sampling = kf.Sampling(temperature=1.5, top_p=1.0, seed=4)
    engine = kf.Engine(model)
    request = engine.submit("In the", 16, sampling)
    for _ in range(6):
        engine.step()
    twin = engine.fork(request)
    other = engine.fork(request, sampling=kf.Sampling(temperature=1.5, top_p=1.0, seed=5))
    longer = engine.fork(request, max_tokens=18)
    finished(engine)
    assert twin.tokens == request.tokens == longer.tokens[:16]
    assert twin.text == request.text
    assert len(longer.tokens) == 18
    assert other.tokens[:6] == request.tokens[:6]
    assert other.tokens != request.tokens
    with pytest.raises(RequestError, match="has ended without its state"):
        engine.fork(request)


BAD = {
    "an unknown token": (([1, 256],), {}, "token 256 at position 1: this model's ids are 0 to 255"),
    "a negative token": (([-1],), {}, "token -1"),
    "an empty prompt": (("",), {}, "no tokens to run"),
    "no ids": (([],), {}, "no tokens to run"),
    "words for ids": ((["a"],), {}, "whole numbers"),
    "uneven lists": (([[1], [1, 2]],), {}, "no list of token ids"),
    "too long": (("x" * 101,), {}, "has 101 tokens, this engine takes 100"),
    "negative length": (("a", -1), {}, "max_tokens is -1"),
    "half a token": (("a", 1.5), {}, "max_tokens is 1.5"),
    "an empty stop string": (("a",), {"stop": [""]}, "stop is"),
    "one string for many": (("a",), {"stop": "ab"}, "must be a list"),
    "an unknown stop token": (("a",), {"stop_tokens": [999]}, "token 999"),
    "a dict for sampling": (("a", 1, {}), {}, "must be a Sampling"),
    "half a character": (("\ud800",), {}, "surrogate"),
    "true for an id": (([1, True],), {}, "true and false are no ids"),
    "a number for a prompt": ((5,), {}, "no list of token ids"),
    "nothing for a prompt": ((None,), {}, "no list of token ids"),
    "a number too large for any id": (([2**70],), {}, "has 71 bits"),
    "a number for stop strings": (("a",), {"stop": 5}, "must be a list"),
    "nothing for stop strings": (("a",), {"stop": None}, "must be a list"),
    "too long a stop string": (("a",), {"stop": ["x" * 1025]}, "of up to 1025 characters"),
    "too many stop strings": (("a",), {"stop": ["x"] * 65}, "stop has 65 strings"),
    "a number for stop tokens": (("a",), {"stop_tokens": 5}, "stop_tokens are no list"),
    "nothing for stop tokens": (("a",), {"stop_tokens": None}, "stop_tokens are no list"),
    "a dict for a state": (("a",), {"state": {}}, "it must be a State"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_refused_in_one_line_and_disturbs_nobody(model, kind):
    arguments, keywords, says = BAD[kind]
    engine = kf.Engine(model, slots=2, longest_prompt=100)
    good = engine.submit("In the", 4, GREEDY)
    engine.step()
    with pytest.raises(RequestError, match=r"^request refused: ") as caught:
        engine.submit(*arguments, **keywords)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    finished(engine)
    assert good.tokens == alone(model, "In the", 4).tokens


BAD_STATES = {
    "NaN": (lambda s: s.arrays["wkv"].__setitem__((0, 0, 0, 0), np.nan), "wkv holds NaN"),
    "infinity": (lambda s: s.arrays["shift"].__setitem__((0, 0), np.inf), "shift holds NaN"),
    "a negative position": (lambda s: setattr(s, "position", -1), "position is -1"),
    "half a position": (lambda s: setattr(s, "position", 1.5), "position is 1.5"),
    "a position too large": (lambda s: setattr(s, "position", 1 << 40), "position is"),
    "complex values": (
        lambda s: s.arrays.update(wkv=s.arrays["wkv"].astype(complex)),
        "wkv is complex128",
    ),
    "a list": (lambda s: s.arrays.update(wkv=[1.0]), "something that is no array"),
    "a missing part": (lambda s: s.arrays.pop("wkv"), "another model's"),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_a_damaged_state_is_refused_when_it_is_submitted_and_disturbs_nobody(model, kind):
    spoil, says = BAD_STATES[kind]
    engine, state = kf.Engine(model, slots=2), model.new_state()
    good = engine.submit("In the", 3, GREEDY)
    engine.step()
    spoil(state)
    with pytest.raises(RequestError, match=r"^request refused: ") as caught:
        engine.submit("a", 2, GREEDY, state=state)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    finished(engine)
    assert good.tokens == alone(model, "In the", 3).tokens


def test_another_models_state_is_refused(model, tmp_path):
    other = kf.load_reference(random_rwkv7(tmp_path / "o.safetensors", width=128, vocab=256))
    with pytest.raises(RequestError, match="the state given is another model's"):
        kf.Engine(model).submit("a", state=other.new_state())


@pytest.mark.parametrize(
    ("slots", "chunk", "says"),
    [(0, 8, "take some"), (300, 256, "take some"), (4, 3, "take 4"), (2, 257, "to 256")],
)
def test_an_engine_that_cannot_be_is_refused(model, slots, chunk, says):
    with pytest.raises(RequestError, match=says):
        kf.Engine(model, slots=slots, chunk=chunk)


def test_damaged_logits_end_the_one_request_they_are_of(model):
    engine = kf.Engine(model)
    bad = engine.submit("ab", 5, GREEDY, state=model.new_state())
    bad.state.arrays["wkv"][...] = np.nan  # as a kernel might; one that comes so is refused
    good = engine.submit("ab", 5, GREEDY)
    finished(engine)
    assert (bad.reason, bad.tokens) == ("error", [])
    assert "logits is nan" in bad.error
    assert good.tokens == alone(model, "ab", 5).tokens


def test_a_model_without_a_vocabulary_of_text_serves_ids(tmp_path):
    model = kf.load_reference(random_rwkv7(tmp_path / "m.safetensors", vocab=96))
    engine = kf.Engine(model)
    request = engine.submit([1, 2, 3], 5, GREEDY)
    finished(engine)
    assert (len(request.tokens), request.text) == (5, "")
    for arguments in (("text",), ([1], 5, GREEDY, ["stop"])):
        with pytest.raises(KernelForgeError, match="no built-in tokenizer has 96 ids"):
            engine.submit(*arguments)
