"""The suffix automaton against the definition of a match, and the tables of known answers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge.traits.suffix_automaton import Match, SuffixAutomaton, matches, rosa
from kernelforge_runtime.abi.rosa import NO_MATCH


def by_definition(queries, keys):
    """The longest common suffix over all earlier ends, the latest of equals."""
    for i in range(len(queries)):
        best = Match(0, -1)
        for end in range(i):
            length = 0
            while length <= end and queries[i - length] == keys[end - length]:
                length += 1
            if length and length >= best.length:
                best = Match(length, end)
        yield best


def numbers(text):
    return [-1 if c == "." else int(c) if c.lstrip("-").isdigit() else ord(c) for c in text]


# Published answers: the stream, what follows its longest repeated suffix ("." for none), lengths.
TABLE = [
    ("000000", ".00000", "012345"),
    ("10011001", "..001011", "00111234"),
    ("0101101001", "..10111100", "0012123312"),
    ("012301230", "....12301", "000012345"),
    ("53553533", "..355553", "00112321"),
    ("mississippi", "...sssis.pp", "00011234011"),
    ("abracadabra", "...b.c.drac", "00010101234"),
    ("banana", "...nan", "000123"),
    ("abcabcabd", "...bcabc.", "000123450"),
    ("xyxzxy", "..y.zx", "001012"),
]
QKV_TABLE = [
    ("1101001", "0110010", "1011001", "..01001", "0012234"),
    ("312312", "123122", "765432", ".65432", "012345"),
    ("0000", "1111", "1111", "....", "0000"),
    ("11111", "11111", "01010", ".1010", "01234"),
]


def signed(answers):
    return [-1 if y == NO_MATCH else y for y in answers]


@pytest.mark.parametrize(("stream", "answers", "lengths"), TABLE, ids=[row[0] for row in TABLE])
def test_a_single_stream_has_the_published_answers(stream, answers, lengths):
    x = numbers(stream)
    assert signed(rosa(x, x, x)) == numbers(answers)
    assert [m.length for m in matches(x, x)] == numbers(lengths)


@pytest.mark.parametrize(("q", "k", "v", "answers", "lengths"), QKV_TABLE)
def test_three_streams_have_the_published_answers(q, k, v, answers, lengths):
    q, k, v = numbers(q), numbers(k), numbers(v)
    assert signed(rosa(q, k, v)) == numbers(answers)
    assert [m.length for m in matches(q, k)] == numbers(lengths)


def test_every_case_of_the_vectors_has_its_answers_lengths_and_ends(shared):
    vectors = json.loads((shared / "rosa_vectors.json").read_text())
    cases = [({"q": c["x"], "k": c["x"], "v": c["x"], "out": c["y"], **c}) for c in vectors["rosa"]]
    cases += vectors["qkv"]
    assert len(cases) > 20
    for case in cases:
        assert signed(rosa(case["q"], case["k"], case["v"])) == case["out"]
        found = list(matches(case["q"], case["k"]))
        assert [m.length for m in found] == case["length"]
        assert [m.end for m in found] == case["end"]


pairs = st.integers(1, 5).flatmap(
    lambda top: st.lists(st.tuples(st.integers(0, top), st.integers(0, top)), max_size=60)
)


@settings(max_examples=1000, deadline=None)
@given(pairs)
def test_queries_and_keys_match_as_defined(pairs):
    q, k = [p[0] for p in pairs], [p[1] for p in pairs]
    assert list(matches(q, k)) == list(by_definition(q, k))
    assert list(matches(q, q)) == list(by_definition(q, q))


def test_queries_that_follow_the_keys_closely_match_as_defined(rng):
    """Long matches that break and resume: where a state is split under the reader."""
    for _ in range(300):
        n, top = int(rng.integers(1, 120)), int(rng.integers(2, 4))
        k = rng.integers(0, top, n)
        q = [
            int(k[max(0, i - 3)]) if rng.random() < 0.9 else int(rng.integers(top))
            for i in range(n)
        ]
        assert list(matches(q, k.tolist())) == list(by_definition(q, k.tolist()))


@pytest.mark.parametrize("top", [1, 2, 16])
def test_there_are_at_most_two_states_for_each_symbol(rng, top):
    automaton = SuffixAutomaton()
    for n, key in enumerate(rng.integers(0, top, 500).tolist(), 1):
        automaton.extend(key)
        assert len(automaton.length) <= 2 * n + 1
