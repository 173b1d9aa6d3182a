"""Generation: pieces of text as they are known, the same on both op sets."""

import weakref

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine.generate import Statistics
from tests.models.checkpoints import random_rwkv7

GREEDY = kf.Sampling(temperature=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "bytes.safetensors", vocab=256, seed=3)


@pytest.fixture(scope="module")
def reference(path):
    return kf.load_reference(path)


def greedy_ids(model, ids, count):
    """What greedy generation must choose, by forward alone."""
    logits, state = model.forward(ids)
    out = []
    for _ in range(count):
        out.append(int(np.argmax(logits)))
        logits, state = model.forward([out[-1]], state)
    return out


def text_of(pieces):
    return "".join(p.text for p in pieces)


def test_greedy_pieces_are_the_argmax_of_each_step(reference):
    pieces = list(kf.generate(reference, b"abc".decode(), 12, GREEDY))
    expected = greedy_ids(reference, list(b"abc"), 12)
    assert [p.token for p in pieces][:12] == expected
    assert text_of(pieces) == bytes(expected).decode(errors="replace")


@pytest.mark.vulkan
def test_a_device_generates_what_numpy_generates(path, reference, device):
    with kf.load_model(path, device, weights="f32") as model:
        found = list(kf.generate(model, "In the", 20, GREEDY))
    assert found == list(kf.generate(reference, "In the", 20, GREEDY))


@pytest.mark.vulkan
def test_sampling_with_a_seed_is_the_same_on_both(path, reference, device):
    sampling = kf.Sampling(temperature=1.0, top_p=0.9, seed=5)
    with kf.load_model(path, device, weights="f32") as model:
        found = list(kf.generate(model, "In the", 20, sampling))
    assert found == list(kf.generate(reference, "In the", 20, sampling))
    other = kf.Sampling(temperature=1.0, top_p=0.9, seed=6)
    assert found != list(kf.generate(reference, "In the", 20, other))


def test_a_prompt_of_ids_is_the_same_as_its_text(reference):
    text, ids = (list(kf.generate(reference, p, 6, GREEDY)) for p in ("xyz", list(b"xyz")))
    assert text == ids


def test_generation_is_lazy_and_the_state_follows(reference):
    state = reference.new_state()
    pieces = kf.generate(reference, "abc", 50, GREEDY, state=state)
    assert not state.arrays["wkv"].any()
    next(pieces)
    one = state.clone()
    next(pieces)
    assert not np.array_equal(state.arrays["wkv"], one.arrays["wkv"])
    pieces.close()


def test_a_state_continues_where_another_generation_ended(reference):
    whole = greedy_ids(reference, list(b"abcdef"), 5)
    _, state = reference.forward(list(b"abc"))
    pieces = list(kf.generate(reference, "def", 5, GREEDY, state=state))
    assert [p.token for p in pieces][:5] == whole


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_more_tokens_than_were_asked_for(reference, count):
    statistics = Statistics()
    pieces = list(kf.generate(reference, "ab", count, GREEDY, statistics=statistics))
    assert statistics.tokens == count
    assert statistics.prompt_tokens == 2
    expected = bytes(greedy_ids(reference, list(b"ab"), count)).decode(errors="replace")
    assert text_of(pieces) == expected


def test_statistics_count_tokens_and_time(reference):
    statistics = Statistics()
    list(kf.generate(reference, "abcd", 8, GREEDY, statistics=statistics))
    assert (statistics.prompt_tokens, statistics.tokens) == (4, 8)
    assert statistics.prefill_s > 0
    assert statistics.decode_s > 0
    assert statistics.prefill_tok_per_s == pytest.approx(4 / statistics.prefill_s)
    assert statistics.decode_tok_per_s == pytest.approx(7 / statistics.decode_s)
    assert Statistics().decode_tok_per_s == Statistics().prefill_tok_per_s == 0.0


class TwoTokens:
    """A vocabulary in which 0 ends a document and everything else is a letter."""

    name = "letters"

    end_token = 0

    def encode(self, text):
        return [ord(c) % 255 + 1 for c in text]

    def decode(self, tokens):
        return bytes(ord("a") + t % 26 for t in tokens)


def always(token):
    """Spoils a model's head so that this token always wins."""

    def change(weights):
        weights["ln_out.weight"][:] = 0
        weights["ln_out.bias"][:] = 1
        weights["head.weight"][:] = 0
        weights["head.weight"][token] = 1

    return change


@pytest.mark.parametrize(("vocab", "tokens"), [(300, 0), (256, 4)])
def test_the_end_token_ends_a_text_and_a_byte_vocabulary_has_none(tmp_path, vocab, tokens):
    path = random_rwkv7(tmp_path / "m.safetensors", vocab=vocab, change=always(0))
    statistics = Statistics()
    model = kf.load_reference(path)
    tokenizer = None if vocab == 256 else TwoTokens()
    pieces = list(kf.generate(model, "ab", 4, GREEDY, tokenizer, statistics=statistics))
    assert statistics.tokens == len(pieces) == tokens


def test_a_character_that_is_cut_off_is_said_at_the_end(tmp_path):
    path = random_rwkv7(tmp_path / "m.safetensors", vocab=256, change=always(0xE2))
    pieces = list(kf.generate(kf.load_reference(path), "a", 2, GREEDY))
    assert text_of(pieces) == b"\xe2\xe2".decode(errors="replace")


@pytest.mark.parametrize("prompt", ["", [], [256], [-1]])
def test_a_prompt_that_cannot_be_run_is_refused_at_the_first_piece(reference, prompt):
    with pytest.raises(kf.KernelForgeError, match="token"):
        next(kf.generate(reference, prompt, 4, GREEDY))


def test_a_long_prompt_leaves_no_logits_behind_but_its_last(reference, monkeypatch):
    step, made, most = reference._step, [], []

    def watched(*given):
        most.append(sum(logits() is not None for logits in made))
        logits, seen = step(*given)
        made.append(weakref.ref(logits))
        return logits, seen

    expected, _ = reference.forward(list(range(60)), chunk=4)
    monkeypatch.setattr(reference, "_step", watched)
    found, _ = reference.forward(list(range(60)), chunk=4)
    np.testing.assert_array_equal(found, expected)
    assert len(most) == 15
    assert max(most) <= 2


def test_ids_need_no_vocabulary_and_give_tokens_without_text(tmp_path):
    odd = kf.load_reference(random_rwkv7(tmp_path / "odd.safetensors", vocab=96))
    found = list(kf.generate(odd, [1, 2, 3], 5, GREEDY))
    assert [piece.token for piece in found] == greedy_ids(odd, [1, 2, 3], 5)
    assert {piece.text for piece in found} == {""}
    with pytest.raises(kf.KernelForgeError, match="no built-in tokenizer has 96 ids"):
        next(kf.generate(odd, "text", 5, GREEDY))
