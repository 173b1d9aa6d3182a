"""What an engine is not meant for is refused in one line, or ends one request: nobody else's."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine.request import Request, Terms
from kernelforge_runtime.errors import DeviceLostError, ModelError, RequestError
from kernelforge_runtime.text import load_tokenizer
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7

GREEDY = kf.Sampling(temperature=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    target = tmp_path_factory.mktemp("m") / "bytes.safetensors"
    return random_rwkv7(target, layers=1, vocab=256, seed=3)


@pytest.fixture(scope="module")
def model(path):
    return kf.load_reference(path)


class Moody:
    """Bytes, but it fails on some of them: as any tokenizer may that a caller brings along."""

    name, vocab_size, end_token, is_bytewise = "moody", 256, None, False

    def __init__(self, hated):
        self.hated = hated

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        if self.hated & {*tokens}:
            raise RuntimeError("this one I do not say")
        return bytes(tokens)


def finished(engine):
    for _ in engine.run():
        pass


def alone(model, prompt, count):
    engine = kf.Engine(model)
    request = engine.submit(prompt, count, GREEDY)
    finished(engine)
    return request


@pytest.mark.parametrize("value", [1.5, "4", True, [4], np.float32(4)])
@pytest.mark.parametrize("name", ["slots", "chunk", "longest_prompt"])
def test_a_size_that_is_no_whole_number_is_refused(model, name, value):
    with pytest.raises(RequestError, match=f"^{name} is .* it must be a whole number$"):
        kf.Engine(model, **{name: value})


def test_a_fork_of_another_models_request_is_refused_and_disturbs_nobody(model, tmp_path):
    other = kf.load_reference(random_rwkv7(tmp_path / "o.safetensors", width=128, vocab=300))
    elsewhere, engine = kf.Engine(other, slots=1), kf.Engine(model)
    running, waiting = elsewhere.submit([1, 2], 9), elsewhere.submit([299], 9)
    elsewhere.step()
    good = engine.submit("In the", 4, GREEDY)
    for request, says in ((running, "another model's"), (waiting, "token 299")):
        with pytest.raises(RequestError, match=f"^fork refused: .*{says}"):
            engine.fork(request)
    finished(engine)
    assert good.tokens == alone(model, "In the", 4).tokens


def test_a_fork_says_no_more_than_it_may(model):
    engine = kf.Engine(model)
    request = engine.submit("In the", 6, GREEDY, keep_state=True)
    for _ in range(4):
        engine.step()
    with pytest.raises(RequestError, match="has said 4 tokens already: max_tokens is 3"):
        engine.fork(request, max_tokens=3)
    finished(engine)
    with pytest.raises(RequestError, match="has said 6 tokens already: max_tokens is 6"):
        engine.fork(request)
    longer = engine.fork(request, max_tokens=8)
    finished(engine)
    assert longer.tokens == alone(model, "In the", 8).tokens


def test_a_prompt_that_ran_alone_is_gone_on_with_from_its_state(model):
    engine = kf.Engine(model)
    request = engine.submit("In th", 0, GREEDY, keep_state=True)
    finished(engine)
    with pytest.raises(RequestError, match="has run its prompt alone, with max_tokens 0"):
        engine.fork(request, max_tokens=4)
    further = engine.submit("e", 4, GREEDY, state=request.state)
    finished(engine)
    assert further.tokens == alone(model, "In the", 4).tokens


def test_what_ended_at_a_stop_string_is_not_gone_on_with(model):
    text = alone(model, "In the", 9).text
    engine = kf.Engine(model)
    request = engine.submit("In the", 9, GREEDY, stop=[text[3:5]], keep_state=True)
    finished(engine)
    assert request.reason == "stop"
    with pytest.raises(RequestError, match="has ended its text: nothing follows"):
        engine.fork(request)


def test_a_prompt_without_end_is_refused_before_it_is_looked_at(model):
    with pytest.raises(RequestError, match="has 1000000000000 tokens, this engine takes 1048576"):
        kf.Engine(model).submit(range(10**12))


def test_a_tokenizer_that_fails_ends_the_request_whose_token_it_was(model):
    expected = {prompt: alone(model, prompt, 12).tokens for prompt in ("ab", "x", "cd", "In")}
    bad, good = next(
        (a, b)
        for a in expected
        for b in expected
        if {*expected[a]} - {*expected[b]} and {*expected[b]} - {*expected[a]}
    )
    engine = kf.Engine(model, tokenizer=Moody({*expected[bad]} - {*expected[good]}))
    requests = {prompt: engine.submit(prompt, 12, GREEDY) for prompt in (bad, good)}
    finished(engine)
    assert requests[bad].reason == "error"
    assert requests[bad].error == "RuntimeError: this one I do not say"
    assert (requests[good].reason, requests[good].tokens) == ("length", expected[good])


def test_the_same_holds_where_the_device_has_chosen_the_token():
    terms = Terms(5, kf.Sampling(seed=1))
    request = Request(1, np.array([1], np.uint32), terms, Moody({7}))
    request.chosen(8)
    assert request.news().reason is None
    request.chosen(7)
    assert request.news().reason == request.reason == "error"
    narrow = Request(2, np.array([1], np.uint32), terms, load_tokenizer("bytes", 300))
    narrow.chosen(299)
    assert narrow.news().reason == "error"
    assert "id 299 is outside its 256 ids" in narrow.error


def test_a_stop_string_in_the_very_last_of_a_text_ends_it():
    terms = Terms(2, GREEDY, stop=("\ufffd",))
    request = Request(1, np.array([1], np.uint32), terms, load_tokenizer("bytes", 256))
    request._take(ord("a"))
    request.news()
    request._take(0xE2)  # the first of three bytes, and the last token that there may be
    assert (request.news().reason, request.text) == ("stop", "a")


@pytest.mark.vulkan
def test_numbers_of_any_width_do_for_a_seed_and_the_rest(path, llvmpipe):
    narrow = kf.Sampling(np.float16(0.5), np.float32(0.5), np.int8(5), seed=np.int32(3))
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        engine = kf.Engine(model)
        requests = [engine.submit("ab", 4, s) for s in (narrow, kf.Sampling(0.5, 0.5, 5, seed=3))]
        finished(engine)
    assert requests[0].tokens == requests[1].tokens
    assert len(requests[0].tokens) == 4


@pytest.mark.vulkan
@pytest.mark.parametrize("position", [2**32 - 2, 2**40])
def test_more_tokens_than_32_bits_count_are_run_like_any_others(path, llvmpipe, position):
    with kf.load_model(path, llvmpipe, weights="f32", slots=2) as model:
        far, near = model.new_state(), model.new_state()
        far.position = position
        found = [model.forward(list(b"abcd"), state)[0] for state in (far, near)]
        assert np.array_equal(*found)
        assert far.position == position + 4
        if position < 2**32:
            far.position = position
            engine = kf.Engine(model)
            other = engine.submit("ab", 6, GREEDY)
            engine.submit("abcd", 3, GREEDY, state=far)
            finished(engine)
            assert other.tokens == alone(model, "ab", 6).tokens


@pytest.mark.vulkan
@pytest.mark.parametrize("first", ["model", "device"])
@pytest.mark.parametrize("device_name", DEVICES)
def test_what_runs_on_a_closed_model_is_told_so_and_does_not_crash(path, device_name, first):
    device = kf.open_device(opened(device_name).info.name)
    model = kf.load_model(path, device, weights="f32", slots=2)
    engine = kf.Engine(model)
    request = engine.submit("ab", 9, keep_state=True)
    other = engine.submit("cd", 9, keep_state=True)
    engine.step()
    state = request.state
    (model if first == "model" else device).close()
    assert engine.cancel(other)  # though a step with it is ahead
    says = "model was closed" if first == "model" else "model's device was closed"
    for use in (
        engine.step,
        lambda: model.forward([1], state),
        lambda: model.forward([1]),
        lambda: model.greedy(1, state),
        lambda: model.choose([np.array([1], np.uint32)], [state], [request.choice()]),
    ):
        with pytest.raises(ModelError, match=f"^this {says}: load the model again$"):
            use()
    assert engine.cancel(request)
    model.close()
    device.close()
    if first == "device":  # nobody could bring them back
        with pytest.raises(DeviceLostError, match="was closed before the model"):
            state.arrays  # noqa: B018
    else:
        assert np.isfinite(state.arrays["wkv"]).all()
