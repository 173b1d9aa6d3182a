"""Vectors among the tokens of an engine's prompts: as if run alone, whoever else is served."""

import numpy as np
import pytest

import kernelforge_runtime as kf
from kernelforge_runtime.engine import spelling
from kernelforge_runtime.engine.prefix_cache import PrefixCache
from kernelforge_runtime.errors import RequestError
from tests.conftest import DEVICES, opened
from tests.models.checkpoints import random_rwkv7
from tests.models.later_checkpoints import random_rosa_counting, random_rwkv7a

GREEDY = kf.Sampling(temperature=0.0)
WIDTH = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return random_rwkv7(tmp_path_factory.mktemp("m") / "m.st", layers=2, width=WIDTH, vocab=96)


@pytest.fixture(params=["numpy", "device"])
def model(request, path):
    """Either with three slots."""
    if request.param == "numpy":
        loaded = kf.load_reference(path)
    else:
        device = request.getfixturevalue("llvmpipe")
        loaded = kf.load_model(path, device, weights="f32", slots=3, chunk=16)
    with loaded:
        yield loaded


@pytest.fixture
def rows():
    return np.random.default_rng(3).standard_normal((7, WIDTH)).astype(np.float32)


def alone(model, parts, tokens=4):
    """Greedy tokens after a prompt of lists of ids and arrays of vectors, by the model itself."""
    state, said = model.new_state(), []
    for part in parts:
        how = {"vectors": part} if isinstance(part, np.ndarray) else {"tokens": part}
        logits, _ = model.forward(**how, state=state)
    while len(said) < tokens:
        said.append(int(np.argmax(logits)))
        logits, _ = model.forward([said[-1]], state)
    model.release(state)
    return said


def flat(parts):
    """Those parts as one prompt: ids, and arrays of vectors among them."""
    return [x for part in parts for x in ([part] if isinstance(part, np.ndarray) else part)]


def run(engine, *requests):
    for _ in engine.run():
        pass
    return [request.tokens for request in requests]


def test_every_mixture_says_what_the_model_says_of_it_among_others(model, rows):
    engine = kf.Engine(model, slots=3, chunk=4)
    wanted = [
        alone(model, parts)
        for parts in ([[1, 2], rows, [3]], [rows], [rows[:1], [5, 6], rows[1:]], [[7, 8, 9, 1, 2]])
    ]
    how = {"max_tokens": 4, "sampling": GREEDY}
    requests = [
        engine.submit([1, 2, rows, 3], **how),
        engine.submit(rows, **how),
        engine.submit([rows[0], [5, 6], rows[1:].tolist()], **how),
        engine.submit([7, 8, 9, 1, 2], **how),
    ]
    rows_then = rows.copy()
    rows[...] = np.nan  # the caller's own by now
    assert run(engine, *requests) == wanted
    assert [r.reason for r in requests] == ["length"] * 4
    assert len(requests[0].prompt) == 3 + len(rows_then)
    assert not engine.active


def test_what_is_no_vector_is_refused_and_nobody_notices(model, rows):
    engine = kf.Engine(model, slots=2, chunk=4)
    good = engine.submit([4, 5, 6], 6, GREEDY)
    mixed = engine.submit([4, rows], 6, GREEDY)
    wanted = alone(model, [[4, 5, 6]], 6), alone(model, [[4], rows], 6)
    engine.step()
    spoilt = rows.copy()
    spoilt[3, 5] = np.inf
    for prompt, why in (
        ([1, spoilt, 2], "part 1 of the prompt: vector 3 of 7 holds a value that is not finite"),
        (rows[:, :-1], r"float32 \[7, 63\]: this model takes numbers"),
        (rows[None], r"\[1, 7, 64\]"),
        ([1, rows[:0]], "part 1 of the prompt: it is empty"),
        ([1, [], rows], "part 1 of the prompt: it is empty"),
        ([1, rows.astype(complex)], "complex128"),
        ([1, rows.astype(object)], "object"),
        ([96, rows], "token 96 at position 0"),
        ([[1, 96], rows], "token 96 at position 1"),
        ([-1, rows], "token -1"),
        ([True, rows], "true and false are no ids"),
        ([1.5, rows], "tokens must be whole numbers"),
        ([None, rows], "whole numbers|token ids"),
        ([rows, [[1.0] * 64, [1.0] * 63]], "part 1 of the prompt: it is neither token ids"),
        ([1, np.array(3.0)], "whole numbers"),
        (["a", rows], "whole numbers"),
        ([rows, ["a"]], "part 1 of the prompt: vectors are <U1"),
        ([np.array([True, False])], "whole numbers|true and false|bool"),
    ):
        with pytest.raises(RequestError, match=why) as found:
            engine.submit(prompt, 2, GREEDY)
        assert "\n" not in str(found.value)
    assert run(engine, good, mixed) == [*wanted]
    short = kf.Engine(model, slots=1, longest_prompt=7)
    with pytest.raises(RequestError, match="8 tokens, this engine takes 7"):
        short.submit([1, rows])


def test_vectors_that_overflow_end_their_own_request_alone(model, rows):
    engine = kf.Engine(model, slots=3, chunk=4)
    good = engine.submit([4, 5, 6, 7], 5, GREEDY)
    huge = np.full((3, WIDTH), 3e38, np.float32)
    huge[:, ::2] *= -1
    with np.errstate(all="ignore"):
        bad = [engine.submit([1, huge], 5, GREEDY), engine.submit([huge, 2, 3], 5, GREEDY)]
        run(engine)
    assert good.tokens == alone(model, [[4, 5, 6, 7]], 5)
    for request in bad:  # a norm may make them small again: then they are a text like others
        assert request.reason in ("error", "length")
        assert request.reason == "length" or "is nan" in request.error


def test_a_model_that_reads_more_of_a_token_refuses_vectors_when_they_are_submitted(tmp_path):
    for write in (random_rwkv7a, lambda path: random_rosa_counting(path, bits=1, vocab=96)):
        with kf.load_reference(write(tmp_path / "m.st")) as model:
            engine = kf.Engine(model, slots=1)
            given = np.zeros((1, model.config.width), np.float32)
            with pytest.raises(RequestError, match="reads more of a token than its embedding"):
                engine.submit([1, given])
            assert not engine.is_busy


def test_requests_with_vectors_are_forked_cancelled_and_kept(model, rows):
    engine = kf.Engine(model, slots=3, chunk=4)
    parts = [*range(1, 12), rows, 3]
    wanted = alone(model, [list(range(1, 12)), rows, [3]])
    first = engine.submit(parts, 4, GREEDY, keep_state=True)
    for _ in range(3):
        engine.step()  # some of its vectors
    assert 0 < len(first.rows) < len(rows)
    twin = engine.fork(first)
    gone = engine.submit(parts, 4, GREEDY)
    engine.step()
    assert engine.cancel(gone)
    behind = engine.state_of(first)
    assert behind.position == 19 + len(first.tokens)
    whole = model.forward(list(range(1, 12)))[1]
    model.forward([3], model.forward(vectors=rows, state=whole)[1])
    if not first.tokens:
        np.testing.assert_allclose(behind.arrays["wkv"], whole.arrays["wkv"], atol=1e-5)
    assert run(engine, first, twin) == [wanted] * 2
    only = engine.submit(rows, 0, keep_state=True)
    run(engine)
    assert only.reason == "length"
    assert only.state.position == 7


def test_vectors_of_several_slots_and_tokens_of_others_share_a_step(model, rows):
    engine = kf.Engine(model, slots=3, chunk=16)
    prompts = [rows[:5]], [rows[5:], [4, 4]], [[1, 2, 3, 4, 5]]
    wanted = [alone(model, parts, 3) for parts in prompts]
    requests = [
        engine.submit(rows[:5], 3, GREEDY),
        engine.submit([rows[5:], 4, 4], 3, GREEDY),
        engine.submit([1, 2, 3, 4, 5], 3, GREEDY),
    ]
    engine.step()
    assert [len(r.tokens) for r in requests] == [1, 1, 1]
    assert run(engine, *requests) == wanted
    assert engine.steps == 3


@pytest.mark.parametrize("seed", range(2))
def test_any_schedule_of_vectors_and_tokens_gives_what_each_gets_alone(model, rows, seed):
    rng = np.random.default_rng(seed)
    shapes = [[rows[:3], [1, 2]], [[5], rows, [6]], [[7, 8, 9] * 6], [rows[2:]], [[3]]]
    wanted = [alone(model, parts) for parts in shapes]
    engine, asked = kf.Engine(model, slots=3, chunk=(3, 16)[seed]), []
    for _ in range(30):
        what, number = rng.integers(6), int(rng.integers(5))
        if what < 2:
            asked.append((number, engine.submit(flat(shapes[number]), 4, GREEDY)))
        elif what < 5:
            engine.step()
        elif asked and asked[-1][1].reason is None:
            which, victim = asked[-1]
            asked.append((which, engine.fork(victim)))
            engine.cancel(victim)
    run(engine)
    for which, request in asked:
        if request.reason == "cancelled":
            assert request.tokens == wanted[which][: len(request.tokens)]
        else:
            assert (request.reason, request.tokens) == ("length", wanted[which])


def test_chunks_of_vectors_are_submitted_while_one_runs(path, rows):
    with kf.load_model(path, opened(DEVICES[0]), weights="f32", slots=2) as model:
        many = np.tile(rows, (8, 1))
        wanted = alone(model, [many, [1]])
        engine, follow, found = kf.Engine(model, chunk=8, on_device=True), model.follow, []
        model.follow = lambda *given: found.append(follow(*given)) or found[-1]
        assert run(engine, engine.submit([many, 1], 4, GREEDY)) == [wanted]
        assert sum(flight is not None and flight.step is not None for flight in found) >= 5
        assert any(size.given and len(s.halves) == 2 for (size, _), s in model._steps.items())


def test_what_prompts_with_vectors_share_is_read_once_and_only_what_is_alike(model, rows):
    other = rows.copy()
    other[2, 7] += 0.5
    shared = [1, 2, 3, 4, rows, 5, 6]
    prompts = [[*shared, 7], [*shared, 8], [*shared, 9], [1, 2, 3, 4, other, 5, 6, 9]]
    wanted = [alone(model, [p[:4], p[4], p[5:]]) for p in prompts]
    cache = PrefixCache(1 << 20)
    engine = kf.Engine(model, slots=1, chunk=4, prefix_cache=cache)
    assert run(engine, *(engine.submit(p, 4, GREEDY) for p in prompts)) == wanted
    assert (cache.statistics.hits, cache.statistics.reused_tokens) == (1, 13)
    again = engine.submit(prompts[3], 4, GREEDY)
    assert run(engine, again) == wanted[3:]
    assert cache.statistics.hits == 1  # never the whole prompt, and it shares too little


def test_vectors_that_are_spelled_alike_by_chance_are_told_apart(model, rows, monkeypatch):
    monkeypatch.setattr(spelling, "NUMBERED", 0xFFFFFFFF)  # every vector is spelled the same
    engine = kf.Engine(model, slots=1, chunk=16, prefix_cache=1 << 20)
    run(engine, engine.submit([rows, 1, 2, 3, 4], 0))
    prompts = [[rows[::-1], 1, 2, 3, 4, 5], [rows, 1, 2, 3, 4, 6]]
    wanted = [alone(model, [p[0], p[1:]]) for p in prompts]
    assert run(engine, *(engine.submit(p, 4, GREEDY) for p in prompts)) == wanted
    assert engine.prefix_cache.statistics.hits == 1


def test_after_a_lost_device_they_begin_again(path, rows):
    with kf.load_reference(path) as lost, kf.load_reference(path) as found:
        engine = kf.Engine(lost, slots=2, chunk=4)
        requests = [engine.submit([1, rows, 2], 4, GREEDY), engine.submit(rows, 4, GREEDY)]
        for _ in range(3):
            engine.step()
        engine.reopen(found)
        wanted = [alone(found, [[1], rows, [2]]), alone(found, [rows])]
        assert run(engine, *requests) == wanted
