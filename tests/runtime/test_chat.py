"""Conversations: what the model reads, where a turn ends, and what the state then holds."""

import random
import re

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine.chat import (
    FORMATS,
    ChatFormat,
    Conversation,
    usual_format,
    without_blank_lines,
)
from kernelforge_runtime.errors import RequestError
from kernelforge_runtime.text import load_tokenizer
from tests.models.checkpoints import DEMO, random_rwkv7

GREEDY = kf.Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = random_rwkv7(tmp_path_factory.mktemp("m") / "bytes.safetensors", vocab=256, seed=3)
    return kf.load_reference(path)


def talk(model, name="world", tokens=12, sampling=GREEDY, **more):
    return Conversation(kf.Engine(model, slots=1), FORMATS[name], sampling, tokens, **more)


def say(conversation, text):
    return "".join(conversation.say(text))


def greedy(model, text, count):
    """Bytes that follow a text."""
    engine = kf.Engine(model, slots=1)
    request = engine.submit(list(text), count, GREEDY)
    for _ in engine.run():
        pass
    return bytes(request.tokens)


def assert_state_after(model, conversation, text):
    _, expected = model.forward(list(text))
    assert conversation.state.position == expected.position
    for name, values in expected.arrays.items():
        np.testing.assert_allclose(conversation.state.arrays[name], values, atol=1e-3)


def test_the_model_reads_the_whole_conversation_in_its_format(model):
    conversation = talk(model)
    first = say(conversation, "  hi\n\n\nthere ")
    text = b"User: hi\nthere\n\nAssistant:"
    answer = greedy(model, text, 12)
    assert first == answer.decode(errors="replace").lstrip()
    text += answer + b"\n\nUser:"
    assert_state_after(model, conversation, text)
    second = say(conversation, "go on")
    text += b" go on\n\nAssistant:"
    assert second == greedy(model, text, 12).decode(errors="replace").lstrip()
    assert conversation.turns == [("hi\nthere", first), ("go on", second)]


@pytest.mark.parametrize(("cut", "length"), [(3, 2), (8, 3), (0, 1)])
def test_an_answer_ends_before_the_next_turns_opening(cut, length, monkeypatch):
    """The opening is made of what the model is going to say: it is read once, and not shown."""
    model = kf.load_reference(DEMO)
    answer = greedy(model, b"Q: And it came\n\nA:", 20)
    opening = answer[cut : cut + length].decode("ascii")
    monkeypatch.setattr(ChatFormat, "stop", property(lambda self: opening))
    conversation = Conversation(
        kf.Engine(model, slots=1), ChatFormat("Q:", " {}\n\nA:"), GREEDY, 20
    )
    said = say(conversation, "And it came")
    ends = answer.index(opening.encode())
    assert said == answer[:ends].decode().lstrip()
    assert conversation.request.reason == "stop"
    assert_state_after(model, conversation, b"Q: And it came\n\nA:" + answer[: ends + length])


def test_plain_text_goes_on_without_any_words_between(model):
    conversation = talk(model, "plain", 5)
    first = say(conversation, "In the")
    answer = greedy(model, b"In the", 5)
    assert first == answer.decode(errors="replace")
    assert_state_after(model, conversation, b"In the" + answer)


def test_a_turn_answered_anew_starts_where_the_first_answer_did(model):
    conversation = talk(model, sampling=kf.Sampling(temperature=1.5, top_p=1.0, seed=1))
    say(conversation, "hi")
    state = conversation.state.clone()
    first = say(conversation, "go on")
    again = "".join(conversation.regenerate())
    assert again != first
    assert [said for said, _ in conversation.turns] == ["hi", "go on"]
    assert conversation.turns[-1][1] == again
    assert all(np.array_equal(conversation._before.arrays[n], a) for n, a in state.arrays.items())


def test_a_seed_makes_a_whole_conversation_repeatable(model):
    sampling = kf.Sampling(temperature=1.5, top_p=1.0, seed=1)
    one, two = (talk(model, sampling=sampling) for _ in range(2))
    for conversation in (one, two):
        for text in ("a", "b"):
            say(conversation, text)
        "".join(conversation.regenerate())
    assert one.turns == two.turns


def test_an_answer_that_is_broken_off_counts_as_far_as_it_came(model):
    conversation = talk(model, tokens=50)
    pieces = conversation.say("hi")
    begun = "".join(next(pieces) for _ in range(3))
    pieces.close()
    assert conversation.request.reason == "cancelled"
    assert conversation.turns == [("hi", begun)]
    text = b"User: hi\n\nAssistant:" + bytes(conversation.request.tokens) + b"\n\nUser:"
    assert_state_after(model, conversation, text)


def test_a_prompt_is_broken_off_while_it_is_read(model):
    conversation = talk(model)
    conversation.engine.chunk = 4
    pieces = conversation.say("x" * 40)
    assert next(pieces) == ""
    pieces.close()
    assert conversation.engine.steps == 1
    assert conversation.turns == [("x" * 40, "")]
    text = b"User: " + b"x" * 40 + b"\n\nAssistant:\n\nUser:"
    assert_state_after(model, conversation, text)  # what was said is read all the same


@pytest.mark.parametrize("anew", [False, True])
def test_an_answer_that_fails_leaves_the_conversation_as_it_was(model, monkeypatch, anew):
    conversation = talk(model)
    first, state = say(conversation, "hi"), conversation.state
    with monkeypatch.context() as patch:
        patch.setattr(conversation.engine.tokenizer, "decode", lambda _: b"".missing)
        with pytest.raises(RequestError, match="the answer was broken off: AttributeError"):
            "".join(conversation.regenerate() if anew else conversation.say("go on"))
    assert conversation.turns == [("hi", first)]
    assert conversation.state is state
    assert "".join(conversation.regenerate()) == first  # from where it was said the first time
    assert conversation.turns == [("hi", first)]


def test_a_saved_conversation_goes_on_and_a_reset_one_starts_anew(model, tmp_path):
    conversation = talk(model)
    first = say(conversation, "hi")
    conversation.save(tmp_path / "s.safetensors")
    second = say(conversation, "go on")
    other = talk(model)
    other.load(tmp_path / "s.safetensors")
    with pytest.raises(RequestError, match="say something first"):
        other.regenerate()
    assert say(other, "go on") == second
    other.reset()
    assert say(other, "hi") == first


def test_saying_nothing_changes_nothing(model):
    conversation = talk(model)
    with pytest.raises(RequestError, match="nothing was said"):
        say(conversation, "  \n ")
    assert conversation.turns == []
    assert conversation.state.position == 0


def test_a_damaged_state_is_refused_and_stays_out_of_the_conversation(model):
    conversation = talk(model)
    conversation.state.arrays["wkv"][...] = np.nan
    with pytest.raises(RequestError, match="the state's wkv holds NaN or infinity"):
        say(conversation, "hi")
    assert conversation.turns == []
    assert conversation.state.position == 0


def test_the_format_follows_the_vocabulary():
    assert usual_format(load_tokenizer("auto", 256)) == "plain"
    assert usual_format(load_tokenizer("auto", 65536)) == "world"
    assert usual_format(None) == "plain"


def test_blank_lines_go_in_one_pass_over_however_much_white_space():
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choice("ab \n\n\t\r") for _ in range(rng.randrange(20)))
        assert without_blank_lines(text) == re.sub(r"\s*\n\s*\n\s*", "\n", text)
    long = "a" + " " * 200_000 + "b"
    assert without_blank_lines(long) == long  # minutes, where a blank is looked at more than once
