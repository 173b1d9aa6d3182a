"""The sampler against the official rules, written out plainly and compared as distributions."""

from dataclasses import astuple

import numpy as np
import pytest

from kernelforge_runtime.abi.sampling import FARTHEST
from kernelforge_runtime.errors import KernelForgeError, ModelError
from kernelforge_runtime.text import Sampler, Sampling, load_tokenizer
from kernelforge_runtime.text import sampler as sampler_module
from kernelforge_runtime.text.sampler import candidates

PLAIN = {"presence": 0.0, "frequency": 0.0}


def kept_distribution(logits, temperature, top_p, top_k):
    """Float64 [V] probabilities by the rules, one step per line."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum()
    ranked = sorted(p, reverse=True)
    total = 0.0
    for cutoff in ranked:
        total += cutoff
        if total >= top_p:
            break
    p[p < cutoff] = 0
    if 0 < top_k < len(p):
        p[np.argsort(-p, kind="stable")[top_k:]] = 0
    p = p ** (1 / temperature)
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [
        (1, 1, 0),
        (1, 0.5, 0),
        (0.7, 0.9, 0),
        (2.0, 0.8, 3),
        (1, 1, 4),
        (0.3, 0.99, 20),
        (1, 1e-9, 0),
    ],
)
def test_draws_follow_the_rules(temperature, top_p, top_k):
    logits = np.random.default_rng(3).standard_normal(12).astype(np.float32) * 1.5
    want = kept_distribution(logits, temperature, top_p, top_k)
    sampler = Sampler(Sampling(temperature, top_p, top_k, seed=7, **PLAIN))
    draws = 4000
    found = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=12) / draws
    assert np.all(found[want == 0] == 0)
    assert np.abs(found - want).max() < 5 * np.sqrt(0.25 / draws)


def official_distribution(logits, temperature, top_p, top_k):
    """Float64 [V] as the official package's function has them, in its float32.

    Its sum may reach a top_p of 1 too early, or never, and then it takes the largest alone: there
    everything is kept, as is meant.
    """
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(p, kind="stable")
    if top_p < 1:
        p[p < p[order[::-1][np.argmax(np.cumsum(p[order][::-1]) >= top_p)]]] = 0
    if 0 < top_k < len(p):
        p[order[:-top_k]] = 0
    p = p.astype(np.float64) ** (1 / temperature)
    return p / p.sum()


def test_a_thousand_random_rows_have_the_official_distribution():
    rng = np.random.default_rng(0)
    wide = 0
    for i in range(1000):
        vocab, scale = int(rng.integers(2, 300)), rng.uniform(0.1, 6)
        logits = (scale * rng.standard_normal(vocab)).astype(np.float32)
        if i % 3 == 0:  # many equals
            logits = np.round(logits)
        top_p = (1.0, 0.85, 0.1, float(rng.uniform(0.01, 0.999)))[i % 4]
        top_k = (0, 0, 1 + int(rng.integers(60)), 1000)[rng.integers(4)]
        temperature = (1.0, 0.2, 1.3, 5.0)[rng.integers(4)]
        want = official_distribution(logits, temperature, top_p, top_k)
        kept, weights = candidates(logits, Sampling(temperature, top_p, top_k, **PLAIN))
        found = np.zeros(vocab)
        found[kept] = weights / weights.sum()
        if len(kept) == top_k and i % 3 == 0:  # which of equals top_k keeps is nowhere said
            found, want = np.sort(found), np.sort(want)
        np.testing.assert_allclose(found, want, rtol=2e-4, atol=1e-9, err_msg=f"row {i}")
        wide += len(kept) > 3
    assert wide > 500


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_top_p_that_is_just_reached_keeps_no_more(count):
    logits = np.log2(np.array([8, 4, 2, 1, 1], np.float32)) * np.float32(np.log(2))
    top_p = (8 / 16, 12 / 16, 14 / 16, 15 / 16)[count - 1]
    for little, expected in ((-1e-4, count), (1e-4, count + 1)):
        found, _ = candidates(logits, Sampling(top_p=top_p + little, **PLAIN))
        assert len(found) == (expected if expected < 4 else 5)  # the last two are equal
    exact = np.array([0.0, -np.inf, 0.0, -np.inf, 0.0, 0.0], np.float32)
    assert candidates(exact, Sampling(top_p=0.25 * count, **PLAIN))[0].tolist() == [0, 2, 4, 5]


def test_ties_at_the_cutoff_are_kept():
    logits = np.log(np.array([0.4, 0.2, 0.2, 0.2], np.float32))
    sampler = Sampler(Sampling(top_p=0.5, seed=1, **PLAIN))
    assert {sampler.choose(logits) for _ in range(200)} == {0, 1, 2, 3}


def test_top_k_keeps_exactly_that_many_even_of_equals():
    sampler = Sampler(Sampling(top_p=1.0, top_k=2, seed=1, **PLAIN))
    assert {sampler.choose(np.zeros(6, np.float32)) for _ in range(100)} == {0, 1}


def test_top_p_one_keeps_everything_a_float_sum_might_miss():
    logits = np.zeros(65536, np.float32)
    sampler = Sampler(Sampling(top_p=1.0, seed=5, **PLAIN))
    assert len({sampler.choose(logits) for _ in range(200)}) > 190


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"top_p": 0, **PLAIN}, {"top_k": 1, **PLAIN}]
)
def test_greedy_is_the_first_largest_logit(options):
    sampling = Sampling(**options)
    assert sampling.is_greedy
    assert Sampler(sampling).choose(np.array([1, 3, 3, 2], np.float32)) == 1


def test_greedy_means_no_penalties_unless_they_are_asked_for():
    assert (Sampling().presence, Sampling().frequency, Sampling().decay) == (0.2, 0.2, 0.996)
    assert (Sampling().temperature, Sampling().top_p, Sampling().top_k) == (1.0, 0.85, 0)
    assert not Sampling().is_greedy
    assert not Sampling(temperature=0, presence=0.5).is_greedy
    sampler = Sampler(Sampling(temperature=0, presence=0.5, frequency=0))
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    assert [sampler.choose(logits) for _ in range(4)] == [0, 1, 2, 0]
    np.testing.assert_array_equal(logits, np.array([1.0, 0.9, 0.8], np.float32))


def test_counts_decay_before_the_new_token_is_added():
    sampler = Sampler(Sampling(temperature=0, frequency=0.1, decay=0.5))
    for token in (4, 4, 9):
        sampler.accept(token)
    assert sampler.counts == {4: 0.75, 9: 1.0}
    logits = np.zeros(10, np.float32)
    np.testing.assert_allclose(sampler._penalised(logits)[[4, 9]], [-0.075, -0.1], rtol=1e-6)


def test_blanks_and_digits_are_seen_but_not_counted():
    tokenizer = load_tokenizer("bytes", 256)
    sampler = Sampler(Sampling(presence=1.0, frequency=1.0, decay=1.0), tokenizer)
    for token in b"1 a\na":
        sampler.accept(token)
    assert sampler.counts == {ord("1"): 0, ord(" "): 0, ord("a"): 2, ord("\n"): 1}
    assert sampler._penalised(np.zeros(256, np.float32))[ord("1")] == -1


def test_many_different_tokens_are_all_counted():
    sampler = Sampler(Sampling(decay=1.0))
    for token in range(1000):
        sampler.accept(token)
    assert sampler.counts == dict.fromkeys(range(1000), 1.0)


def test_the_same_seed_gives_the_same_choices():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    first, again = (Sampler(Sampling(top_p=1.0, seed=11)) for _ in range(2))
    assert [first.choose(logits) for _ in range(50)] == [again.choose(logits) for _ in range(50)]


def test_forbidden_tokens_are_never_chosen():
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 30]] = [5.0, -200.0]
    for top_p in (0.85, 1.0):
        sampler = Sampler(Sampling(temperature=5.0, top_p=top_p, seed=0, **PLAIN))
        assert {sampler.choose(logits) for _ in range(100)} <= {3, 30}


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6])
def test_extreme_temperatures_do_not_break(temperature):
    logits = np.array([0.0, 100.0, -1e30, 99.0], np.float32)
    token = Sampler(Sampling(temperature, top_p=1.0, seed=0, **PLAIN)).choose(logits)
    assert token in ((1,) if temperature < 1 else (0, 1, 3))


def test_what_has_no_weight_in_float32_is_not_brought_back_by_a_high_temperature():
    """As in the official package and on a device, where it is no number any more."""
    assert sampler_module.FARTHEST == FARTHEST
    logits = np.array([0.0, -FARTHEST, -1.01 * FARTHEST, -FARTHEST], np.float32)
    sampler = Sampler(Sampling(1e6, top_p=1.0, seed=0, **PLAIN))
    assert {sampler.choose(logits) for _ in range(60)} == {0, 1, 3}


def test_settings_are_plain_numbers_whatever_they_came_as():
    found = Sampling(np.float16(0.5), np.float32(0.5), np.int8(5), 1, 0, True + 0, np.uint64(2**63))
    assert found == Sampling(0.5, 0.5, 5, 1.0, 0.0, 1.0, 2**63)
    kinds = (float, float, int, float, float, float, int)
    assert tuple(type(v) for v in astuple(found)) == kinds
    assert Sampler(Sampling(top_k=10**400, seed=10**400)).choose(np.zeros(3, np.float32)) < 3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_an_error(bad, temperature):
    sampler = Sampler(Sampling(temperature=temperature))
    with pytest.raises(ModelError, match=r"largest of 3 logits is (nan|inf) \(token 1\)"):
        sampler.choose(np.array([0, bad, 1], np.float32))
    with pytest.raises(ModelError, match="-inf"):
        sampler.choose(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"top_p": 1.5},
        {"top_p": -0.1},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_k": 2.0},
        {"decay": 1.1},
        {"presence": float("nan")},
        {"frequency": 1e9},
        {"seed": -1},
        {"top_p": True},
        {"temperature": 10**400},
        {"temperature": np.array([1, 2])},
        {"decay": -(10**5000)},
        {"seed": -(10**5000)},
        {"top_k": np.True_},
    ],
)
def test_wrong_settings_are_refused_by_name(options):
    (name,) = options
    with pytest.raises(KernelForgeError, match=f"sampling: {name} is"):
        Sampling(**options)
