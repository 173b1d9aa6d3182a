"""sample: the choices of the host's sampler, and of no other distribution."""

from functools import cache
from unittest.mock import patch

import numpy as np
import pytest

from kernelforge.families.sample import SAMPLE, uniform
from kernelforge_runtime.abi.problem import Problem
from kernelforge_runtime.abi.sampling import CHOICE_WORDS, DRAW, LARGEST, NO_TOKEN
from kernelforge_runtime.dtypes import F32
from kernelforge_runtime.text import Sampler, Sampling, draws
from kernelforge_runtime.text.sampler import candidates
from tests.families.running import run, variants

pytestmark = [pytest.mark.vulkan, pytest.mark.glslang]

SEED = 0x1234_5678_9ABC_DEF0
PAIRS = 4


def words(kind=DRAW, temperature=1.0, top_p=1.0, top_k=0, count=0, pairs=0):
    numbers = np.array([top_p, 1 / temperature], np.float32).view(np.uint32)
    return [kind, pairs, SEED & 0xFFFFFFFF, SEED >> 32, count, top_k, *numbers.tolist()]


def choose(device, logits, choice, penalty=None):
    """The tokens of every row of logits [B, V]; the default variant."""
    rows, vocab = logits.shape
    problem = Problem(V=vocab, M=vocab, B=rows, H=PAIRS)
    given = {
        "logits": logits.astype(np.float32),
        "choice": np.array(choice, np.uint32).reshape(rows, CHOICE_WORDS),
        "penalty": np.zeros((rows, PAIRS, 2), np.uint32) if penalty is None else penalty,
    }
    (params,) = variants(SAMPLE, F32, device, problem)
    return run(device, SAMPLE, F32, params, problem, given)["out_token"]


def host(logits, count, **settings):
    """What the host's sampler draws from a row, with the same random number."""
    sampler = Sampler(Sampling(presence=0, frequency=0, seed=SEED, **settings))
    sampler._accepted = count
    return sampler.choose(logits)


SETTINGS = [
    {"temperature": 1.0, "top_p": 1.0},
    {"temperature": 0.7, "top_p": 0.85},
    {"temperature": 2.0, "top_p": 0.5, "top_k": 3},
    {"temperature": 1.3, "top_p": 1.0, "top_k": 7},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_host_and_device_choose_the_same_tokens_from_the_same_seed(device, rng, settings):
    rows = 400
    logits = (2 * rng.standard_normal((rows, 300))).astype(np.float32)
    found = choose(device, logits, [words(count=i, **settings) for i in range(rows)])
    expected = [host(logits[i], i, **settings) for i in range(rows)]
    # Where a draw falls within rounding of an edge between two tokens, either is right.
    assert np.count_nonzero(found != expected) <= 1


@cache
def shares(row, settings):
    """How often the host chooses each token of a row of logits; the same for every device."""
    logits = np.frombuffer(row, np.float32)
    fine = (np.arange(20_000) + 0.5) / 20_000
    sampler = Sampler(Sampling(presence=0, frequency=0, **dict(settings)))
    with patch("kernelforge_runtime.text.sampler.uniform", lambda _seed, count: fine[count]):
        chosen = [sampler.choose(logits) for _ in fine]
    return np.bincount(chosen, minlength=len(logits)) / len(fine)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_hosts_distribution(device, rng, settings):
    # SwiftShader takes several times as long for a row.
    rows, vocab = 1000 if device.info.slug == "swiftshader" else 4000, 40
    row = (1.5 * rng.standard_normal(vocab)).astype(np.float32)
    choice = [words(count=i, **settings) for i in range(rows)]
    found = choose(device, np.tile(row, (rows, 1)), choice)
    share = shares(row.tobytes(), tuple(settings.items()))
    seen = np.bincount(found, minlength=vocab)
    assert (seen[share == 0] == 0).all()
    likely = share * rows >= 5
    chi2 = ((seen - share * rows)[likely] ** 2 / (share * rows)[likely]).sum()
    freedom = max(likely.sum() - 1, 1)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5
    assert likely.sum() >= 3


def test_every_row_has_its_own_penalties_top_p_and_top_k_together(device, rng):
    """Three kinds of row side by side, each with the distribution of the host's rules."""
    rows, vocab, kinds = 1200, 30, 3
    settings = [
        {"temperature": 1.4, "top_p": 0.8, "top_k": 6},
        {"temperature": 0.8, "top_p": 0.95, "top_k": 12},
        {"temperature": 2.0, "top_p": 0.6, "top_k": 4},
    ]
    bases = (1.5 * rng.standard_normal((kinds, vocab))).astype(np.float32)
    penalty = np.zeros((rows, PAIRS, 2), np.uint32)
    choice, lowered = [], bases.copy()
    for kind in range(kinds):
        tokens = np.argsort(-bases[kind])[: kind + 2]
        lowered[kind, tokens] -= np.float32(0.7 + kind / 4)
        penalty[kind::kinds, : len(tokens), 0] = tokens
        penalty[kind::kinds, : len(tokens), 1] = np.float32(0.7 + kind / 4).view(np.uint32)
    for row in range(rows):
        choice.append(words(count=row, pairs=row % kinds + 2, **settings[row % kinds]))
    found = choose(device, np.tile(bases, (rows // kinds, 1)), choice, penalty)
    for kind in range(kinds):
        kept, weights = candidates(
            lowered[kind], Sampling(presence=0, frequency=0, **settings[kind])
        )
        seen = np.bincount(found[kind::kinds], minlength=vocab)
        wanted = np.zeros(vocab)
        wanted[kept] = weights / weights.sum() * (rows // kinds)
        assert (seen[wanted == 0] == 0).all()
        assert 3 <= len(kept) <= settings[kind]["top_k"]
        chi2 = ((seen - wanted)[kept] ** 2 / wanted[kept]).sum()
        freedom = len(kept) - 1
        assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_the_familys_random_numbers_are_the_runtimes():
    for count in (0, 1, 2**32 - 1):
        assert uniform(SEED & 0xFFFFFFFF, SEED >> 32, count) == draws.uniform(SEED, count)


def test_of_equals_top_k_keeps_the_lowest_and_top_p_keeps_all(device):
    logits = np.zeros((600, 50), np.float32)
    logits[:, [7, 20, 21, 33, 49]] = 3
    by_k = choose(device, logits, [words(top_k=3, count=i) for i in range(600)])
    assert set(by_k.tolist()) == {7, 20, 21}
    by_p = choose(device, logits, [words(top_p=0.1, count=i) for i in range(600)])
    assert set(by_p.tolist()) == {7, 20, 21, 33, 49}


def test_penalties_are_subtracted_before_anything_else(device):
    logits = np.zeros((2, 40), np.float32)
    logits[:, 5], logits[:, 9] = 3, 2
    penalty = np.zeros((2, PAIRS, 2), np.uint32)
    penalty[1, 0] = 5, np.float32(1.5).view(np.uint32)
    choice = [words(LARGEST), words(LARGEST, pairs=1)]
    assert choose(device, logits, choice, penalty).tolist() == [5, 9]


def test_a_damaged_row_has_no_token_and_the_others_have_theirs(device):
    logits = np.zeros((5, 64), np.float32)
    logits[:, 3] = 1
    logits[1, 60], logits[2, 60], logits[3] = np.nan, np.inf, -np.inf
    for kind in (DRAW, LARGEST):
        found = choose(device, logits, [words(kind, top_k=1)] * 5)
        assert found.tolist() == [3, NO_TOKEN, NO_TOKEN, NO_TOKEN, 3]


def test_tokens_that_are_forbidden_are_never_drawn(device):
    logits = np.full((300, 100), -np.inf, np.float32)
    logits[:, [11, 97]] = [0, 1]
    found = choose(device, logits, [words(temperature=9.0, count=i) for i in range(300)])
    assert set(found.tolist()) == {11, 97}


def test_a_small_temperature_takes_the_largest_without_overflow(device, rng):
    logits = rng.standard_normal((20, 1000)).astype(np.float32)
    found = choose(device, logits, [words(temperature=1e-6, count=i) for i in range(20)])
    assert found.tolist() == logits.argmax(axis=1).tolist()


def test_a_large_vocabulary_is_chosen_from_as_the_host_does(device, rng):
    logits = (3 * rng.standard_normal((8, 65536))).astype(np.float32)
    settings = {"temperature": 1.0, "top_p": 0.3, "top_k": 0}
    found = choose(device, logits, [words(count=i, **settings) for i in range(8)])
    expected = [host(logits[i], i, **settings) for i in range(8)]
    assert np.count_nonzero(found != expected) <= 1
