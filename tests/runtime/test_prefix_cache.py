"""The prefix cache: what prompts share is read once, within a budget, and nobody's text changes."""

import random

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine import token_trie
from kernelforge_runtime.engine.chat import FORMATS, Conversation
from kernelforge_runtime.engine.prefix_cache import SHORTEST, PrefixCache
from kernelforge_runtime.engine.token_trie import TokenTrie
from kernelforge_runtime.errors import RequestError
from kernelforge_runtime.state import State
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rosa_lm

GREEDY = kf.Sampling(temperature=0)
LARGE = 1 << 30


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return random_rwkv7(folder / "m.safetensors", layers=1, vocab=256, seed=3)


@pytest.fixture(scope="module")
def model(path):
    return kf.load_reference(path, np.float64)


def run(engine, *prompts, tokens=4, **terms):
    """Requests, one after the other where the engine has one slot."""
    requests = [engine.submit(prompt, tokens, GREEDY, logits=True, **terms) for prompt in prompts]
    logits = {request: [] for request in requests}
    for event in engine.run():
        if event.logits is not None:
            logits[event.request].append(event.logits)
    return requests, [np.stack(found) for found in logits.values()]


def ids(*array):
    return np.array(array, np.uint32)


def drawn(rng, count):
    return [rng.randrange(256) for _ in range(count)]


# What a cache holds


def small_state(value=0.0, size=100):
    return State("v", {"x": np.full((1, size), value, np.float32)})


def checked(cache):
    """The cache, once what it says of itself was counted anew."""
    nodes = [*cache._trie]
    states = [node for node in nodes if node.kept is not None]
    assert len(states) == len(cache)
    taken = sum(node.kept.nbytes for node in states)
    assert cache.nbytes == taken + sum(512 + node.tokens.nbytes for node in nodes)
    assert cache.nbytes <= cache.budget
    for node in nodes:
        assert node.kept is not None or len(node.children) > 1, "it leads to nothing of its own"
        assert node.parent.children[int(node.tokens[0])] is node
        assert node.length == node.parent.length + len(node.tokens)
    return cache


def test_the_longest_kept_beginning_is_found_and_never_the_whole_prompt():
    cache = PrefixCache(LARGE)
    line = np.arange(100, dtype=np.uint32)
    for count in (10, 50, 30, 100):
        state = small_state(count)
        state.position = count
        assert cache.keep(line[:count], state)
    for asked, found in ((9, 0), (10, 0), (11, 10), (30, 10), (31, 30), (100, 50), (101, 100)):
        prompt = np.append(line, np.uint32(7))[:asked]
        hit = cache.longest(prompt)
        assert (hit.position if hit else 0) == found
        assert hit is None or (hit.arrays["x"] == found).all()
    other = line.copy()
    other[40] = 1000
    assert cache.longest(other).position == 30
    assert cache.parting(other) == 40
    checked(cache)


def test_a_copy_is_handed_out_and_a_copy_is_kept():
    cache = PrefixCache(LARGE)
    state, tokens = small_state(1), np.arange(20, dtype=np.uint32)
    cache.keep(tokens[:10], state)
    state.arrays["x"][...] = 2
    first = cache.longest(tokens)
    first.arrays["x"][...] = 3
    assert (cache.longest(tokens).arrays["x"] == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_random_sequences_are_found_as_by_comparing_each_and_the_budget_holds(seed):
    rng = random.Random(seed)
    budget = 12_000
    cache, kept = PrefixCache(budget), []
    for step in range(300):
        tokens = ids(*[rng.randrange(2) for _ in range(rng.randrange(SHORTEST, 40))])
        if rng.random() < 0.5:
            state = small_state(step, rng.choice([10, 100, 400]))
            state.position = len(tokens)
            assert cache.keep(tokens, state)
            kept.append(tokens.tobytes())
        else:
            alive = {
                n.length: n
                for n in cache._trie
                if n.kept is not None
                and n.length < len(tokens)
                and spelled(n) == [*tokens][: n.length]
            }
            found = cache.longest(tokens)
            assert (found.position if found else 0) == max(alive, default=0)
        checked(cache)
    assert cache.statistics.evicted > 50
    assert len(set(kept)) > len(cache) > 3
    cache.clear()
    assert (len(checked(cache)), cache.nbytes) == (0, 0)


def spelled(node):
    found = []
    while node is not None:
        found = [*node.tokens, *found]
        node = node.parent
    return found


def test_what_was_used_longest_ago_goes_first():
    cache = PrefixCache(3 * (400 + 512 + 32) + 1000)  # three, and no room for a fourth
    sequences = [np.full(SHORTEST, n, np.uint32) for n in range(4)]
    for n in (0, 1, 2):
        cache.keep(sequences[n], small_state(n))
    cache.longest(np.append(sequences[0], ids(9)))
    cache.keep(sequences[1], small_state(1))  # is there already: used again, not kept twice
    cache.keep(sequences[3], small_state(3))
    there = [cache.longest(np.append(s, ids(9))) is not None for s in sequences]
    assert there == [True, True, False, True]
    assert checked(cache).statistics.kept == 4


def test_what_does_not_fit_or_is_damaged_is_not_kept():
    cache = PrefixCache(2000)
    tokens = np.arange(10, dtype=np.uint32)
    assert not cache.keep(tokens, small_state(0, 1000))
    assert not cache.keep(tokens, small_state(np.nan))
    assert not cache.keep(tokens[: SHORTEST - 1], small_state())
    assert not PrefixCache(0).keep(tokens, small_state())
    assert len(checked(cache)) == 0


@pytest.mark.parametrize("budget", [-1, 1.5, "1", None, True])
def test_a_budget_that_is_none_gets_one_line(budget):
    with pytest.raises(RequestError, match="prefix cache: budget is"):
        PrefixCache(budget)


def test_a_sequence_may_be_placed_on_the_way_to_another():
    trie = TokenTrie()
    long = trie.place(ids(1, 2, 3, 4))
    short = trie.place(ids(1, 2))
    assert long.parent is short
    assert trie.walk(ids(1, 2, 3, 9)) == ([short], 3)
    assert trie.place(ids(1, 2)) is short


# What an engine makes of it


@pytest.mark.parametrize("seed", range(4))
def test_random_prompts_get_the_text_that_they_get_without(model, seed):
    rng = random.Random(seed)
    stems = [drawn(rng, n) for n in (5, 40, 150)]
    prompts = []
    for _ in range(9):
        stem = rng.choice(stems)
        prompts.append(stem[: rng.randrange(1, len(stem) + 1)] + drawn(rng, rng.randrange(1, 30)))
    prompts += rng.choices(prompts, k=3)
    plain, expected = run(kf.Engine(model, slots=4, chunk=64), *prompts)
    cache = PrefixCache((300_000, LARGE)[seed % 2], every=rng.choice([16, 64, 256]))
    engine = kf.Engine(model, slots=rng.choice([1, 3]), chunk=64, prefix_cache=cache)
    found, logits = run(engine, *prompts)
    for old, new, a, b in zip(plain, found, expected, logits, strict=True):
        assert (old.tokens, old.text) == (new.tokens, new.text)
        np.testing.assert_allclose(b, a, atol=1e-9)
    checked(cache)
    assert cache.statistics.prompts == len(prompts)
    if cache.budget == LARGE:
        assert cache.statistics.reused_tokens > 0
    else:
        assert cache.statistics.evicted > 5


@pytest.mark.vulkan
@pytest.mark.parametrize("device_name", DEVICES[:1])
def test_logits_are_bit_for_bit_the_same_where_steps_are_cut_alike(path, device_name):
    rng = random.Random(0)
    shared = drawn(rng, 96)
    prompts = [shared + drawn(rng, n) for n in (20, 11)]
    with kf.load_model(path, opened(device_name), weights="f32", slots=2) as model:
        _, expected = run(kf.Engine(model, slots=1, chunk=32), *prompts)
        engine = kf.Engine(model, slots=1, chunk=32, prefix_cache=PrefixCache(LARGE, every=32))
        steps = []
        for prompt, wanted in zip(prompts, expected, strict=True):
            before = engine.steps
            _, (found,) = run(engine, prompt)
            np.testing.assert_array_equal(found, wanted)
            steps.append(engine.steps - before)
        assert engine.prefix_cache.statistics.reused_tokens == 96
        assert steps == [3 + 1 + 3, 1 + 3]


def test_the_third_prompt_goes_on_where_two_parted(model):
    rng = random.Random(1)
    shared = drawn(rng, 37)
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    reused = []
    for _ in range(3):
        before = engine.prefix_cache.statistics.reused_tokens
        run(engine, shared + drawn(rng, 20))
        reused.append(engine.prefix_cache.statistics.reused_tokens - before)
    assert reused == [0, 0, 37]


def test_a_prompt_said_again_is_read_again_only_once(model):
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    prompt = [*range(30)]
    read = []
    for _ in range(3):
        (request,), _ = run(engine, prompt)
        read.append(engine.prefix_cache.statistics.reused_tokens)
        assert request.tokens == run(kf.Engine(model), prompt)[0][0].tokens
    assert read == [0, 0, 29]


def test_the_next_turn_of_a_text_goes_on_from_the_answer(model):
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    prompt = [*range(20)]
    (request,), _ = run(engine, prompt, tokens=6)
    run(engine, prompt + request.tokens + [1, 2, 3])
    # All but the answer's last token, which no step has been through.
    assert engine.prefix_cache.statistics.reused_tokens == 25


def test_a_request_with_a_state_of_its_own_has_no_part_in_it(model):
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    _, own = model.forward([1, 2, 3])
    prompt = [*range(20)]
    run(engine, prompt, state=own)
    assert len(engine.prefix_cache) == 0
    run(engine, prompt)
    held = len(engine.prefix_cache)
    (with_own,), _ = run(engine, [*prompt, 7], state=own)
    assert len(engine.prefix_cache) == held
    assert with_own.tokens == run(kf.Engine(model), [*prompt, 7], state=own)[0][0].tokens


def test_forks_go_on_with_a_cache_as_without(model):
    texts = []
    for cache in (None, LARGE):
        engine = kf.Engine(model, slots=2, prefix_cache=cache)
        run(engine, [*range(25)])
        first = engine.submit([*range(24), 9], 8, GREEDY)
        waiting = engine.fork(first)
        engine.step()
        engine.step()
        running = engine.fork(first)
        for _ in engine.run():
            pass
        texts.append([r.tokens for r in (first, waiting, running)])
        assert texts[-1][0] == texts[-1][1] == texts[-1][2]
    assert texts[0] == texts[1]


def test_a_state_that_grows_is_kept_with_its_history(tmp_path):
    path = random_rosa_lm(tmp_path / "r-1bit.safetensors", bits=1, layers=1)
    model = kf.load_reference(path)
    rng = random.Random(2)
    vocab = model.config.vocab
    shared = [rng.randrange(vocab) for _ in range(50)]
    prompts = [shared + [rng.randrange(vocab) for _ in range(12)] for _ in range(3)]
    plain, expected = run(kf.Engine(model, slots=1), *prompts)
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    found, logits = run(engine, *prompts)
    assert [r.tokens for r in plain] == [r.tokens for r in found]
    for a, b in zip(expected, logits, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4)
    assert engine.prefix_cache.statistics.reused_tokens == 50


def test_a_cache_is_one_model_s(model, path):
    cache = PrefixCache(LARGE)
    kf.Engine(model, prefix_cache=cache)
    kf.Engine(model, prefix_cache=cache)
    with pytest.raises(RequestError, match="states of another model"):
        kf.Engine(kf.load_reference(path), prefix_cache=cache)


def test_a_conversation_begun_anew_does_not_read_its_opening_again(model):
    engine = kf.Engine(model, slots=1, prefix_cache=LARGE)
    talk = Conversation(engine, FORMATS["raven"], GREEDY, max_tokens=4)
    answers = []
    for _ in range(3):
        talk.reset()
        answers.append("".join(talk.say("In the beginning was the Word")))
    assert len(set(answers)) == 1
    assert engine.prefix_cache.statistics.reused_tokens > 20


def test_a_long_prompt_is_walked_once_however_often_it_is_kept(model, monkeypatch):
    seen, alike = [], token_trie._alike
    monkeypatch.setattr(token_trie, "_alike", lambda a, b: seen.append(1) or alike(a, b))
    for budget in (LARGE, 20 * model.new_state().nbytes):  # all is kept, or the latest alone
        seen.clear()
        engine = kf.Engine(model, slots=1, prefix_cache=PrefixCache(budget, every=8))
        (request,), _ = run(engine, drawn(random.Random(1), 480), tokens=1)
        assert request.reason == "length"
        assert engine.prefix_cache.statistics.kept == 60
        assert len(seen) < 3 * 60, "each keep walks from where the last one was"
        checked(engine.prefix_cache)


def test_an_engine_that_goes_on_after_a_lost_device_keeps_its_cache(path):
    prompt = list(range(30))
    lost, found = (kf.load_reference(path) for _ in range(2))
    rounded = kf.load_reference(path, weights="nf4")
    engine = kf.Engine(lost, slots=1, prefix_cache=LARGE)
    (before,), _ = run(engine, prompt)
    shared = kf.Engine(lost, slots=1, prefix_cache=engine.prefix_cache)
    for each in (engine, shared):
        each.reopen(found)
    (after,), _ = run(engine, [*prompt, *before.tokens, 5])
    assert engine.prefix_cache.statistics.reused_tokens == 33
    (alone,), _ = run(kf.Engine(found, slots=1), [*prompt, *before.tokens, 5])
    assert after.tokens == alone.tokens
    engine.reopen(rounded)
    assert not len(engine.prefix_cache)
    with pytest.raises(RequestError, match="states of another model"):
        kf.Engine(lost, slots=1, prefix_cache=engine.prefix_cache)


def test_what_is_run_again_after_an_interrupt_is_kept_where_it_belongs(model, monkeypatch):
    prompt, wanted = list(range(60)), model.forward(list(range(60)))[1]
    engine = kf.Engine(model, slots=1, chunk=8, prefix_cache=PrefixCache(LARGE, every=8))
    request, advance = engine.submit(prompt, 3, GREEDY), model.advance
    for _ in range(5):
        engine.step()

    def broken(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "advance", broken)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(model, "advance", advance)
    for _ in engine.run():
        pass
    for node in checked(engine.prefix_cache)._trie:
        assert node.kept is None or node.kept.position == node.length
    found = engine.prefix_cache.longest(np.arange(57, dtype=np.uint32))
    _, found = model.forward(prompt[56:], found)
    np.testing.assert_allclose(found.arrays["wkv"], wanted.arrays["wkv"], atol=1e-9)
    assert request.reason == "length"
